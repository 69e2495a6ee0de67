package volume

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"regexp"
	"strings"
)

// Offsets inside of the partition "duet", in bytes; see the package comment.
const (
	metadataSize  = 16 << 20
	superblockAt  = 0
	lockAt        = 4096
	arbiterAt     = 64 << 10
	arbiterStride = 4096
	slotHeader    = 4096
	slotMax       = 4 << 20 // header and JSON
)

var slotAt = [2]uint64{1 << 20, 8 << 20}

// MaxVMs is how many virtual machines a volume holds: each has an arbiter block.
const MaxVMs = 64

const (
	superblockMagic = "DUETVOL\x00"
	lockMagic       = "DUETLOCK"
	slotMagic       = "DUETDEFS"
	layoutVersion   = 1
)

// errNewer says that a later software wrote a record.
var errNewer = errors.New("this software knows version")

// superblock says that the volume is Duet's.
type superblock struct {
	blockSize uint32
	blocks    uint64
	id        GUID
	first     uint64 // block of the partition
}

func (s superblock) encode() []byte {
	b := make([]byte, recordLen)
	copy(b, superblockMagic)
	binary.LittleEndian.PutUint32(b[8:], layoutVersion)
	binary.LittleEndian.PutUint32(b[12:], s.blockSize)
	binary.LittleEndian.PutUint64(b[16:], s.blocks)
	copy(b[24:], s.id[:])
	binary.LittleEndian.PutUint64(b[40:], s.first)
	seal(b)
	return b
}

func decodeSuperblock(b []byte) (s superblock, err error) {
	if len(b) < recordLen || string(b[:8]) != superblockMagic {
		return s, ErrNotDuet
	}
	if !sealed(b, superblockMagic) {
		return s, fmt.Errorf("volume's superblock is %w", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != layoutVersion {
		return s, fmt.Errorf("volume has layout version %d, this software knows version %d: update it on both hosts", v, layoutVersion)
	}
	return superblock{
		blockSize: binary.LittleEndian.Uint32(b[12:]), blocks: binary.LittleEndian.Uint64(b[16:]),
		id: GUID(b[24:40]), first: binary.LittleEndian.Uint64(b[40:]),
	}, nil
}

// lockRecord is the content of the lock block.
type lockRecord struct {
	generation uint64 // of the definitions when the lock was last given back
	nonce      GUID   // zero: free
	owner      string // name of the host, for messages
}

func (l lockRecord) encode(blockSize int) []byte {
	b := make([]byte, blockSize)
	copy(b, lockMagic)
	binary.LittleEndian.PutUint64(b[8:], l.generation)
	copy(b[16:], l.nonce[:])
	copy(b[32:96], l.owner)
	seal(b)
	return b
}

func decodeLock(b []byte) (l lockRecord, err error) {
	if !sealed(b, lockMagic) || !isZero(b[recordLen:]) {
		return l, fmt.Errorf("volume's lock block is %w", ErrDamaged)
	}
	owner, _, _ := bytes.Cut(b[32:96], []byte{0})
	return lockRecord{binary.LittleEndian.Uint64(b[8:]), GUID(b[16:32]), string(owner)}, nil
}

// definitions is the content of a slot.
type definitions struct {
	generation uint64
	vms        []Definition
}

// slotJSON is the JSON of a slot.
type slotJSON struct {
	VMs []Definition `json:"vms"`
}

// encode returns header and JSON for a slot, padded to blocks.
func (d definitions) encode(slot int) ([]byte, error) {
	if d.vms == nil {
		d.vms = []Definition{}
	}
	text, err := json.MarshalIndent(slotJSON{d.vms}, "", " ")
	if err != nil {
		return nil, err
	}
	n := roundUp(slotHeader+uint64(len(text)), 4096)
	if n > slotMax {
		return nil, fmt.Errorf("%w: the VM definitions have %s", ErrFull, size(uint64(len(text))))
	}
	b := make([]byte, n)
	copy(b, slotMagic)
	binary.LittleEndian.PutUint32(b[8:], layoutVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(text)))
	binary.LittleEndian.PutUint64(b[16:], d.generation)
	binary.LittleEndian.PutUint32(b[24:], crc32.Checksum(text, castagnoli))
	binary.LittleEndian.PutUint32(b[28:], uint32(slot+1))
	seal(b)
	copy(b[slotHeader:], text)
	return b, nil
}

// slotLength checks a slot's header and returns the length of its JSON.
func slotLength(b []byte, slot int) (int, error) {
	if len(b) < slotHeader || !sealed(b, slotMagic) || !isZero(b[recordLen:slotHeader]) {
		return 0, fmt.Errorf("header of VM definitions is %w", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != layoutVersion {
		return 0, fmt.Errorf("VM definitions have version %d, %w %d: update it on both hosts", v, errNewer, layoutVersion)
	}
	n := binary.LittleEndian.Uint32(b[12:])
	if n > slotMax-slotHeader {
		return 0, fmt.Errorf("VM definitions claim %d bytes: %w", n, ErrDamaged)
	}
	// Zero is what was written before the slots had numbers.
	if k := binary.LittleEndian.Uint32(b[28:]); k != 0 && k != uint32(slot+1) {
		return 0, fmt.Errorf("VM definitions are those of the other slot: %w", ErrDamaged)
	}
	return int(n), nil
}

// decodeSlot decodes header, JSON and the zeros behind it.
func decodeSlot(b []byte, slot int) (d definitions, err error) {
	n, err := slotLength(b, slot)
	if err != nil {
		return d, err
	}
	if len(b) < slotHeader+n {
		return d, fmt.Errorf("VM definitions are cut off: %w", ErrDamaged)
	}
	text := b[slotHeader : slotHeader+n]
	if !isZero(b[slotHeader+n:]) {
		return d, fmt.Errorf("bytes behind VM definitions: %w", ErrDamaged)
	}
	if crc32.Checksum(text, castagnoli) != binary.LittleEndian.Uint32(b[24:]) {
		return d, fmt.Errorf("checksum of VM definitions: %w", ErrDamaged)
	}
	var j slotJSON
	if err := decodeStrict(text, &j); err != nil {
		return d, fmt.Errorf("VM definitions on the volume: %w", err)
	}
	if len(j.VMs) > MaxVMs {
		return d, fmt.Errorf("%d VM definitions on the volume: %w", len(j.VMs), ErrInvalid)
	}
	for _, vm := range j.VMs {
		if err := vm.check(); err != nil {
			return d, err
		}
	}
	return definitions{binary.LittleEndian.Uint64(b[16:]), j.VMs}, nil
}

var unknownField = regexp.MustCompile(`unknown field "([^"]*)"`)

// decodeStrict decodes one JSON value and refuses fields that v doesn't have.
func decodeStrict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		}
		return fmt.Errorf("%w: there is something after the end", ErrInvalid)
	}
	if m := unknownField.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%w: unknown field %q", ErrInvalid, m[1])
	}
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind) && kind.Field == "":
		return fmt.Errorf("%w: it must be a JSON object, and not a JSON %s", ErrInvalid, kind.Value)
	case errors.As(err, &kind):
		return fmt.Errorf("%w: field %q must not be a JSON %s", ErrInvalid, kind.Field, kind.Value)
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return fmt.Errorf("%w: it is no JSON: it ends too early", ErrInvalid)
	}
	return fmt.Errorf("%w: %s", ErrInvalid, strings.TrimPrefix(err.Error(), "json: "))
}
