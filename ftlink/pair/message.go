package pair

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Message is what the copies of a VM tell each other: a heartbeat, sent on
// both paths each Config.Heartbeat and at each change of role. Each says all
// there is to say, so any may be lost.
type Message struct {
	VM          UUID
	From        HostID
	Incarnation uint64 // of the sender's process
	Seq         uint64 // grows within an incarnation
	Role        Role
	VolumeLost  bool   // the sender can't reach the volume
	Ready       bool   // secondary: may write to the volume, so that a switchover may come
	Drained     bool   // the sender's host is to have no copy
	Epoch       uint64 // of the block that the sender last saw
	Seed        Seed   // the sender's present or last seeding
	Received    uint64 // secondary: LSN up to which it holds the log
	Verified    uint64 // secondary: LSN up to which it has executed and verified it
	Successor   uint64 // secondary: counter of the seeding of its own that a switchover would begin
}

// MessageSize is the length of an encoded message.
const MessageSize = 91

// MessageVersion is the version of the layout.
const MessageVersion = 2

// The flags of a message.
const (
	flagLost  = 1
	flagReady = 2
	flagDrain = 4
)

// ErrMessage says that bytes are no message.
var ErrMessage = errors.New("not a pair message")

// Encode returns the message in its layout, integers big endian:
//
//	0   u8   version, 2
//	1   u8   flags: bit 0, the volume is lost; bit 1, ready; bit 2, drained;
//	         all others zero
//	2   16   VM
//	18  u64  from
//	26  u64  incarnation
//	34  u64  sequence number
//	42  u8   role
//	43  u64  epoch
//	51  u64  seed: incarnation
//	59  u64  seed: counter
//	67  u64  received
//	75  u64  verified
//	83  u64  successor
func (m Message) Encode() []byte {
	b := make([]byte, 0, MessageSize)
	b = append(b, MessageVersion, 0)
	if m.VolumeLost {
		b[1] |= flagLost
	}
	if m.Ready {
		b[1] |= flagReady
	}
	if m.Drained {
		b[1] |= flagDrain
	}
	b = append(b, m.VM[:]...)
	be := binary.BigEndian
	b = be.AppendUint64(b, uint64(m.From))
	b = be.AppendUint64(b, m.Incarnation)
	b = be.AppendUint64(b, m.Seq)
	b = append(b, byte(m.Role))
	b = be.AppendUint64(b, m.Epoch)
	b = be.AppendUint64(b, m.Seed.Incarnation)
	b = be.AppendUint64(b, m.Seed.N)
	b = be.AppendUint64(b, m.Received)
	b = be.AppendUint64(b, m.Verified)
	return be.AppendUint64(b, m.Successor)
}

// Decode reads an encoded message. The error wraps ErrMessage.
func Decode(b []byte) (Message, error) {
	switch {
	case len(b) != MessageSize:
		return Message{}, fmt.Errorf("%w: %d bytes, want %d", ErrMessage, len(b), MessageSize)
	case b[0] != MessageVersion:
		return Message{}, fmt.Errorf("%w: version %d, want %d; both hosts need the same image", ErrMessage, b[0], MessageVersion)
	case b[1]&^(flagLost|flagReady|flagDrain) != 0 || b[42] == 0 || Role(b[42]) >= roles:
		return Message{}, fmt.Errorf("%w: flags %#x, role %d", ErrMessage, b[1], b[42])
	}
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }
	m := Message{
		From: HostID(u64(18)), Incarnation: u64(26), Seq: u64(34), Role: Role(b[42]), VolumeLost: b[1]&flagLost != 0,
		Ready: b[1]&flagReady != 0, Drained: b[1]&flagDrain != 0,
		Epoch: u64(43), Seed: Seed{u64(51), u64(59)}, Received: u64(67), Verified: u64(75), Successor: u64(83),
	}
	copy(m.VM[:], b[2:])
	return m, nil
}
