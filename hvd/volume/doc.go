// Package volume is what lies on the shared volume: a GPT, the definitions of
// the virtual machines, the arbiter blocks, and the virtual disks.
//
// # Place
//
// hvd opens the volume over an iscsi.Session and takes a VM's disk from here as
// a DiskIO; the arbiter learns from ArbiterLBA which block is a VM's. Of ours,
// it imports only hvd/iscsi, for its errors. Memory and File stand in for the
// volume in tests and when a volume is built offline.
//
// # Layout
//
// A standard GPT (UEFI 2.10, chapter 5), for blocks of 512 or 4096 bytes, 128
// entries, with its backup at the end. Partitions start at multiples of 1 MiB.
//
//	partition 1, "duet", 16 MiB, type 64A9C1D6-7E0B-4B0F-9C56-4475657401A1
//	others, "duet:<vm>:<disk>" (cut to 36 characters), one per virtual disk,
//	        type 64A9C1D6-7E0B-4B0F-9C56-4475657402D2; the partition's own GUID
//	        is derived from volume, VM and disk, and is what counts
//
// Inside of "duet", offsets in bytes (numbers are little-endian, checksums
// CRC32C over the bytes before them):
//
//	0x000000  superblock, 512 bytes
//	          0 "DUETVOL\0"  8 version u32 = 1  12 block size u32  16 blocks u64
//	          24 volume UUID (16)  40 first block of this partition u64
//	          508 checksum u32
//	0x001000  lock block, one block
//	          0 "DUETLOCK"  8 generation u64  16 owner's nonce (16), zero: free
//	          32 owner's name (64)  508 checksum u32, zeros up to the block's end
//	0x010000  arbiter blocks, one block each, 4096 bytes apart, 64 of them.
//	          Their content is the arbiter's; zeros: never used
//	0x100000  definitions, slot 0, up to 4 MiB
//	0x800000  definitions, slot 1, up to 4 MiB
//	          0 "DUETDEFS"  8 version u32 = 1  12 length of the JSON u32
//	          16 generation u64  24 checksum of the JSON u32
//	          28 number of the slot + 1 u32 (0: not said)  508 checksum u32
//	          4096 JSON: {"vms": [definition, ...]}, zeros up to 4096 bytes
//
// # Updates
//
// The slot with the higher generation and good checksums holds the
// definitions; usually both hold the same. An update
//
//  1. takes the lock: COMPARE AND WRITE of the lock block from free to a nonce
//     of its own. A lock that hasn't changed for 60 s belongs to a dead host
//     and is taken over the same way; the owner itself stops writing 20 s after
//     it got the lock, and looks at it before each write;
//  2. reads both slots again;
//  3. changes the GPT where disks are added (backup first, then primary);
//  4. writes the next generation to the slot that doesn't hold the definitions,
//     or to slot 1 where both do, and syncs: from here on the update holds;
//  5. writes it to the other slot, and syncs;
//  6. changes the GPT where disks are removed;
//  7. gives the lock back with the new generation, by COMPARE AND WRITE.
//
// A crash leaves the old definitions (before the first slot is complete: it fails
// its checksums) or the new ones. A partition that no definition mentions is a
// remnant of such a crash and is dropped by the next update.
//
// # Damage
//
// Every byte of the metadata is under a checksum, or known to be zero. Each
// single piece can be lost: the GPT has its backup, the definitions have two
// copies, the superblock follows from the GPT (whose disk GUID is the volume's,
// and proved by that of partition 1), and the lock block from two good copies
// of the definitions. Inspect names what is damaged, Repair writes it again; a
// host does both by itself. A copy that is older than the lock block says is no
// replacement: going on with it is a person's decision (Rollback, which is "hvd
// volume rollback"). Arbiter blocks have no copy, since they change by one
// COMPARE AND WRITE; they have a checksum, and a damaged one lets nobody run the
// VM.
package volume
