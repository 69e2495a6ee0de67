// Package recording is the file format of the flight recorder: the state of a
// running VM at one position, and the log of what came after.
//
// # Place
//
// hvd/vmproc writes a recording onto a stream while the VM runs; hvd/playback
// reads one and executes it again. It knows neither machine nor devices: their
// state is opaque JSON here. Pure but for the io.Writer and io.Reader that it is
// given. It imports hvd/event.
//
// # Layout, version 1
//
// Integers are little endian; a varint is an unsigned LEB128. A file is a header
// and blocks, one behind the other, without padding.
//
//	header, 16 bytes
//	0   8   89 'D' 'u' 'e' 't' 'R' 'e' 'c'
//	8   u16 version of this layout
//	10  u16 version of the log's entries (event.Version)
//	12  u32 low half of xxh3 of bytes 0-11
//
//	block, 24 bytes and the payload
//	0   u8  kind
//	1   u8  packing: 0 as it is, 1 one S2 block
//	2   u16 0
//	4   u32 length of the payload as it is stored
//	8   u32 length of the payload unpacked
//	12  u32 number of the block, from 0
//	16  u64 xxh3 of bytes 0-15 and the stored payload
//	24      payload
//
// The payload, unpacked, by kind; the blocks come in this order:
//
//	1 Head   JSON of Head; exactly one
//	2 Pages  any number; a page that comes again counts anew, one that never
//	         comes is zero:
//	         count        varint
//	         count x      varint: bit 0: the page is zero; the rest: its number
//	                      less the one before, the first less -1
//	         4096 bytes for each page that isn't zero, in the same order
//	3 State  JSON of State, in one piece or more
//	4 Log    any number:
//	         0   u64      LSN of the first byte; the recording's log begins at 0
//	         8            bytes of the log (hvd/event), cut anywhere
//	5 End    exactly one; whoever made the file ended it in order:
//	         0   u64      position
//	         8   u64      fingerprint there
//	         16  u64      LSN
//	         24           why it ended: a line of text
//
// An End before the State says why there is none. A file without an End was cut. All that lies before a damaged or missing block
// is good: each block has its own checksum and number.
package recording

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/duet-ft/duet/hvd/event"
)

// Version is the version of the layout above.
const Version = 1

// PageSize is the unit of memory, in bytes.
const PageSize = 4096

// Limits of what a reader takes and a writer makes.
const (
	maxRaw    = 1<<20 + 8<<10 // a block's payload, unpacked
	maxStored = maxRaw + 1<<10
	maxHead   = 64 << 10
	maxState  = 256 << 20
	maxMemory = 1 << 44
	maxWhy    = 1 << 10

	pagesPerBlock = 128
	statePiece    = 1 << 20
	logPiece      = 256 << 10

	headerSize      = 16
	blockHeaderSize = 24
)

const magic = "\x89DuetRec"

// Kind is what a block holds.
type Kind uint8

// The kinds of block.
const (
	KindHead Kind = 1 + iota
	KindPages
	KindState
	KindLog
	KindEnd
)

func (k Kind) String() string {
	names := [...]string{"", "head", "memory", "state", "log", "end"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return names[k]
}

// Head says what was recorded, and what a machine that executes it needs.
type Head struct {
	VM      string          `json:"vm"`
	Host    string          `json:"host"`
	Image   string          `json:"image"`   // fingerprint of the program that recorded
	CPU     string          `json:"cpu"`     // the processor's name
	Leaves  string          `json:"leaves"`  // fingerprint of what the guest sees of it
	Started time.Time       `json:"started"` // wall clock
	Memory  uint64          `json:"memory"`  // bytes
	Machine json.RawMessage `json:"machine"` // configuration of the devices
}

// State is everything but memory, and where the log starts from.
type State struct {
	Base     event.Base      `json:"base"`
	Snapshot json.RawMessage `json:"snapshot"`
}

// End is how a recording ended.
type End struct {
	Position, Fingerprint uint64
	LSN                   uint64
	Why                   string
}

var (
	// ErrFormat says that a file isn't a recording, or not one of this version.
	ErrFormat = errors.New("not a recording that this program can read")
	// ErrDamaged says that bytes of a recording are wrong, or that it ends
	// early.
	ErrDamaged = errors.New("the recording is damaged")
	// ErrUnfinished says that a recording ended, in order, before all of the
	// machine's state was written. There is nothing to replay.
	ErrUnfinished = errors.New("the recording ended before the machine's state was complete")
)
