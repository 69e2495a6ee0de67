// Package diskref decides when the log may say "these blocks" instead of what a
// guest read from its disk, and keeps account of such references on both sides.
//
// # Place
//
// Pure. hvd/vm uses it around real copies of a VM, hvd/sim around simulated
// ones. It imports nothing of ours. The entry that carries a reference is
// event.DiskRef.
//
// # A reference's life
//
//	primary                                      secondary
//	read leaves, its completion comes in
//	Tracker.Done: may it be a reference?
//	Keeper.Keep; log: DiskRef ---------------->  Holder.Add, when the log arrives
//	                                             Holder.Start: reads the blocks
//	                                               same hash: held
//	          <------- asks for the data --------  else, or the volume doesn't answer
//	Keeper.Data ------- the data ------------->  held
//	                                             Holder.Take, at its position
//	Keeper.Acked  <---- held up to here -------  Holder.Frontier
//
// The secondary reads when the entry arrives, long before it executes that far,
// so replay waits for the volume only when it is close behind.
//
// # Layout of a reference
//
//	sector   varint   of 512 bytes, the first that was read
//	sectors  varint   their number
//	hash     16 bytes xxh3's 128 bits of their contents
//
// With the rest of its entry that is 22 to 36 bytes.
//
// # Why the secondary reads the very same bytes
//
// Let a read R be made by the guest at position r, and let its completion be in
// the log, as a reference, at position p. The primary read the blocks at some
// time between the two. The secondary reads them at any time after p was written.
// Only the VM's live copy writes its disks, and only by the guest's requests,
// which the board's disks hand out; there are no requests to unmap or to write
// zeroes, and a volume's larger blocks are written back with the same bytes beside
// the ones that change (hvd/volume.DiskIO). So let W be a write that overlaps R.
//
//   - W completed before r. The volume had it when either copy read: both see it.
//   - W was made before p, and wasn't complete at r. Which bytes R read depends
//     on who was first, and W may not even have left yet. Tracker knows: R is no
//     reference, its data goes into the log. It doesn't matter when W leaves.
//   - W is made at p or later. It carries an LSN behind the reference, and leaves
//     only when the secondary has acknowledged that LSN. A secondary acknowledges
//     nothing behind the first reference that it doesn't hold (Frontier), neither
//     as received nor, since it can't get past it, as executed. So by the time W
//     leaves, the secondary has read.
//
// The last point needs a gate that waits for acknowledgements. While effects leave
// at once (alone, or in a state transfer), there are no references. Should
// the gate open later, the pair is no more, and that secondary can't go live.
//
// # When the secondary goes live
//
// All that left its primary was acknowledged, so it holds all that is behind it,
// and nothing that may still land from the dead primary overlaps a reference that
// it doesn't hold. It can go on reading, before or after the other side
// is fenced. If it can't read (the volume doesn't answer), or the hash is another
// one, its log ends there: nothing behind that entry was acknowledged at either
// level, so nothing behind it has left, and the guest goes on from where it
// waits for the read, which is issued again like all that are pending.
//
// # What the hash is for
//
// By the above it can't differ. It does if a target loses what it
// acknowledged, somebody else writes to the disk, or we are wrong. The primary
// still has the data until it is acknowledged, so the secondary asks for it and
// goes on; it never executes bytes that aren't its primary's. A guest that makes
// blocks of one hash gains nothing: they would have to change between the
// two reads.
package diskref

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"
)

// SectorSize is the unit of a disk in bytes.
const SectorSize = 512

const (
	// MinLen is the shortest read that becomes a reference, in bytes. A page of
	// 4 KiB, a database's usual read, costs the link 4 us at 10 Gbit/s and the
	// volume one more command; below, the data is hardly more than the reference, and
	// what waits for it shouldn't wait for the volume twice.
	MinLen = 4 << 10
	// MaxLen is the longest, for the secondary may ask for its data in one message.
	// Linux's longest request is 1.25 MiB unless it is told otherwise.
	MaxLen = 2 << 20
)

// ErrRef says that bytes are no reference.
var ErrRef = errors.New("corrupt reference to a disk's blocks")

// Sum names the contents of blocks.
type Sum [16]byte

// SumOf is the sum of data.
func SumOf(data []byte) Sum { return xxh3.Hash128(data).Bytes() }

// Ref says which blocks a completed read has read.
type Ref struct {
	Disk   int
	ID     uint64 // the request's
	Sector uint64 // of 512 bytes
	Len    int    // bytes, whole sectors
	Sum    Sum
}

// Encode is the reference as the log's entry carries it. Disk and ID are the
// entry's own.
func (r Ref) Encode() []byte {
	b := binary.AppendUvarint(make([]byte, 0, 32), r.Sector)
	b = binary.AppendUvarint(b, uint64(r.Len/SectorSize))
	return append(b, r.Sum[:]...)
}

// Decode reads what Encode wrote. The error is an ErrRef.
func Decode(disk int, id uint64, b []byte) (Ref, error) {
	r := Ref{Disk: disk, ID: id}
	var n int
	if r.Sector, n = binary.Uvarint(b); n <= 0 {
		return Ref{}, fmt.Errorf("%w: sector", ErrRef)
	}
	b = b[n:]
	sectors, n := binary.Uvarint(b)
	if n <= 0 || sectors == 0 || sectors > MaxLen/SectorSize || r.Sector+sectors < r.Sector {
		return Ref{}, fmt.Errorf("%w: number of sectors", ErrRef)
	}
	if b = b[n:]; len(b) != len(r.Sum) {
		return Ref{}, fmt.Errorf("%w: hash of %d bytes", ErrRef, len(b))
	}
	r.Len = int(sectors) * SectorSize
	copy(r.Sum[:], b)
	return r, nil
}
