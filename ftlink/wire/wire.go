// Package wire is what the two copies of a VM say to each other on their
// stream: frames, and the codecs of what is inside them.
//
// # Place
//
// Pure: no goroutine, clock or socket. ftlink/session carries the frames over
// TLS; hvd fills in the log, the pages and the state. It imports nothing of
// ours.
//
// # Layout, version 3
//
// A stream is a sequence of frames without padding. Integers are little
// endian; a varint is an unsigned LEB128.
//
//	type      u8       see below
//	flags     u8       bit 0: the log bytes are a zstd frame; others are 0
//	reserved  u16      0
//	length    u32      bytes of payload, at most the type's limit
//	payload
//
// Payloads by type:
//
//	1  Hello      JSON, see Hello; at most 4 KiB. The first frame each way.
//	2  Log        lsn u64, LSN of the first byte; then the bytes of the log (1
//	              byte to 1 MiB). With flag bit 0: raw u32, their number, then
//	              a zstd frame of them.
//	3  Ack        received u64, verified u64: the LSNs up to which the
//	              secondary holds the log, and has executed it with equal
//	              fingerprints. verified is never larger.
//	4  SeedBegin  JSON of the state transfer that begins; at most 64 KiB
//	5  Pages      coding u8: 0 plain, 1 zstd
//	              count varint: pages, 1 to 256
//	              count times a varint: bit 0 says that the page isn't all
//	              zero; the rest is the page number, for all but the first
//	              less the last page number less 1 (so numbers rise)
//	              the contents of the pages that aren't all zero, 4096 bytes
//	              each, plain or as one zstd frame
//	6  State      a piece of an opaque blob; pieces are joined in order. At
//	              most 4 MiB.
//	7  SeedEnd    JSON; at most 64 KiB
//	8  Control    JSON, what a secondary tells beside the log; at most 64 KiB
//	9  Bye        text for people, why the stream ends; at most 1 KiB
//	10 Have       first varint; then hashes of 16 bytes each, 1 to 4096, of
//	              the pages from first on, which the receiver of a state
//	              transfer has already. Empty: that was all.
//	11 Want       disk varint, request varint: the secondary can't read what
//	              that request has read, which the log refers to
//	12 Blocks     disk varint, request varint, then the data: the answer
//	13 Packet     an Ethernet frame that came in for the VM at the host that it
//	              has left by a switchover; at most 64 KiB
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the version of the layout above. Hello carries it.
const Version = 3

// HeaderSize is the size of a frame without its payload, in bytes.
const HeaderSize = 8

// MaxPayload bounds the payload of every type of frame, in bytes.
const MaxPayload = 4 << 20

// FlagZstd says that the bytes of a Log frame are compressed.
const FlagZstd = 1 << 0

// ErrFrame says that bytes are no frame, or no payload of its type.
var ErrFrame = errors.New("malformed frame from the peer")

// Type is what a frame carries.
type Type uint8

// The types of frame; the package comment has their payloads.
const (
	TypeHello     Type = 1 + iota
	TypeLog            // bytes of the log
	TypeAck            // what the secondary holds and has executed
	TypeSeedBegin      // a state transfer begins
	TypePages          // pages of guest memory
	TypeState          // a piece of the machine's state
	TypeSeedEnd        // a state transfer is complete
	TypeControl        // a message of the pair protocol
	TypeBye            // the sender closes the stream
	TypeHave           // hashes of pages that are there already
	TypeWant           // asks for what a disk's request has read
	TypeBlocks         // what it has read
	TypePacket         // a packet that is sent after the VM
	types
)

// rules has each type's name, largest payload in bytes and permitted flags.
var rules = [types]struct {
	name  string
	limit int
	flags uint8
}{
	TypeHello:     {"hello", 4 << 10, 0},
	TypeLog:       {"log", MaxPayload, FlagZstd},
	TypeAck:       {"ack", ackSize, 0},
	TypeSeedBegin: {"seed-begin", 64 << 10, 0},
	TypePages:     {"pages", MaxPayload, 0},
	TypeState:     {"state", MaxPayload, 0},
	TypeSeedEnd:   {"seed-end", 64 << 10, 0},
	TypeControl:   {"control", 64 << 10, 0},
	TypeBye:       {"bye", 1 << 10, 0},
	TypeHave:      {"have", binary.MaxVarintLen64 + MaxHave*SumSize, 0},
	TypeWant:      {"want", wantSize, 0},
	TypeBlocks:    {"blocks", wantSize + MaxBlocks, 0},
	TypePacket:    {"packet", 64 << 10, 0},
}

// String is the type's name.
func (t Type) String() string {
	if t > 0 && t < types {
		return rules[t].name
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// Limit is the largest payload of a frame of type t in bytes, 0 if there is no
// such type.
func (t Type) Limit() int {
	if t < types {
		return rules[t].limit
	}
	return 0
}

// Frame is one frame.
type Frame struct {
	Type    Type
	Flags   uint8
	Payload []byte
}

// Check says what keeps f from being sent: an unknown type, flags that the
// type doesn't have, or a payload above its limit.
func (f Frame) Check() error { return check(f.Type, f.Flags, len(f.Payload)) }

func check(t Type, flags uint8, length int) error {
	switch {
	case t == 0 || t >= types:
		return fmt.Errorf("%w: unknown type %d", ErrFrame, uint8(t))
	case flags&^rules[t].flags != 0:
		return fmt.Errorf("%w: flags %#x in a frame of type %v", ErrFrame, flags, t)
	case length > rules[t].limit:
		return fmt.Errorf("%w: %d bytes in a frame of type %v, limit %d", ErrFrame, length, t, rules[t].limit)
	}
	return nil
}

// Append encodes f behind dst. A Reader refuses a frame that fails Check.
func Append(dst []byte, f Frame) []byte {
	dst = appendHeader(dst, f.Type, f.Flags, len(f.Payload))
	return append(dst, f.Payload...)
}

func appendHeader(dst []byte, t Type, flags uint8, length int) []byte {
	dst = append(dst, byte(t), flags, 0, 0)
	return binary.LittleEndian.AppendUint32(dst, uint32(length))
}
