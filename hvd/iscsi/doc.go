// Package iscsi is a user-space iSCSI initiator for one logical unit: blocks,
// COMPARE AND WRITE and persistent reservations over one TCP connection.
//
// # Place
//
// hvd/volume lays VM definitions and virtual disks out on a Session; the
// arbiter and fencing use its COMPARE AND WRITE and its reservations. The
// package imports nothing of ours. Sources: RFC 7143 (iSCSI), RFC 1994 (CHAP),
// SPC-4 (primary commands, reservations, sense data) and SBC-3 (block commands).
//
// # PDU layout (RFC 7143, section 11.2)
//
//	byte 0      bit 7 reserved, bit 6 immediate delivery, bits 5-0 opcode
//	1           flags, by opcode
//	2-3         by opcode: response, status
//	4           length of additional header segments, in 4-byte words
//	5-7         length of the data segment in bytes, without padding
//	8-15        logical unit number, or by opcode
//	16-19       initiator task tag (ITT)
//	20-23       target transfer tag, or expected data transfer length
//	24-27       CmdSN (to the target) or StatSN (from it)
//	28-31       ExpStatSN (to the target) or ExpCmdSN (from it)
//	32-47       CDB; or MaxCmdSN (32-35), DataSN/R2TSN (36-39), buffer offset
//	            (40-43), residual count or desired length (44-47)
//	then        additional header segments, header digest (CRC32C, if agreed),
//	            data padded to 4 bytes, data digest (CRC32C, if agreed)
//
// # A session
//
//	       Dial                       connection lost
//	(none) ----> online ------------------------------> offline
//	               ^                                       |
//	               |  login with the same ISID, by the     | back-off 100 ms..2 s
//	               |  portals in turn; unit is the same    |
//	               |  one, OnReconnect says yes            |
//	               +---------------------------------------+
//	Close, another unit behind the same name, or OnReconnect
//	answering ErrFenced: closed, for good
//
// Error recovery is level 0: whatever goes wrong on a connection (a digest, a
// PDU that makes no sense, silence) ends it, and a new login with the same ISID
// makes the target drop what was left of the old session (session
// reinstatement, RFC 7143 section 6.3.5). Then commands that may be repeated
// (reads, writes, SYNCHRONIZE CACHE, inquiries) are issued again by
// themselves. COMPARE AND WRITE and PERSISTENT RESERVE OUT are not: when they
// were on the wire the answer is ErrUnknownOutcome, and it's up to the caller
// to read back what happened.
//
// Each wait has a bound: a login Config.Timeout, silence the same, a command and a
// closed command window three times that, and being offline Config.MaxOffline. A
// target that asks for a logout (asynchronous message, event 1) gets it when the
// commands under way are done.
//
// # Two portals
//
// Config.Second is another way to the same target. There is one connection at a
// time: when it is lost, the next login goes by the other portal, so that no two
// paths carry commands that could overtake each other. That is safe only where the
// target ends what was left of the old connection before it answers the new login,
// which it has to do for an I_T nexus: initiator name, ISID and target portal group.
// So both portals must be of one group, by the tag that the target declares at
// login; one of another group is refused, since commands sent by the old path could
// still be executed after those sent by the new one, and registrations, which belong
// to the nexus, wouldn't cover it.
//
// # What a fence relies on
//
// PREEMPT AND ABORT ends what the target has taken of the victim. Where it is missing
// (tgt), Fence uses PREEMPT and then LOGICAL UNIT RESET, and fails if the target has
// neither.
//
// # Writes
//
// A write is split so that each piece fits the immediate data of one command
// PDU whenever the target takes a sensible amount (64 KiB or more). The target
// then never waits for data of a host that just died, and a fence (PREEMPT)
// has nothing to wait for. Targets that don't take immediate data get R2T.
package iscsi
