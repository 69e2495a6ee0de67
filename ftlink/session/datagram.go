package session

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/duet-ft/duet/ftlink/wire"
)

// Sizes of datagrams in bytes; the package comment has the layout.
const (
	MaxDatagram  = 1200
	MaxHeartbeat = 1024 // payload of a heartbeat

	datagramHeader  = 24
	datagramMin     = datagramHeader + macSize
	fingerprintSize = 8
	beaconMin       = 16 + fingerprintSize
)

const (
	datagramMagic   = "duet"
	datagramVersion = 1
	hostSlotByte    = 255
)

type datagramKind uint8

const (
	kindHeartbeat datagramKind = 1
	kindBeacon    datagramKind = 2
	kindEcho      datagramKind = 3
	kindAnswer    datagramKind = 4
)

var errMalformed = errors.New("malformed datagram")

// datagram is one datagram without its tag.
type datagram struct {
	kind        datagramKind
	path        Path
	slot        uint8
	incarnation uint64
	counter     uint64
	payload     []byte
}

// seal appends d to dst, with a tag by key.
func seal(dst []byte, d datagram, key []byte) []byte {
	start := len(dst)
	dst = append(dst, datagramMagic...)
	dst = append(dst, datagramVersion, byte(d.kind), byte(d.path), d.slot)
	dst = binary.LittleEndian.AppendUint64(dst, d.incarnation)
	dst = binary.LittleEndian.AppendUint64(dst, d.counter)
	dst = append(dst, d.payload...)
	return appendTag(dst, key, dst[start:])
}

// parseDatagram reads a datagram without looking at its tag. The payload
// is a part of b.
func parseDatagram(b []byte) (datagram, error) {
	if len(b) < datagramMin || len(b) > MaxDatagram || string(b[:4]) != datagramMagic || b[4] != datagramVersion {
		return datagram{}, errMalformed
	}
	d := datagram{
		kind: datagramKind(b[5]), path: Path(b[6]), slot: b[7],
		incarnation: binary.LittleEndian.Uint64(b[8:]),
		counter:     binary.LittleEndian.Uint64(b[16:]),
		payload:     b[datagramHeader : len(b)-macSize],
	}
	switch {
	case d.kind < kindHeartbeat || d.kind > kindAnswer,
		d.kind >= kindEcho && len(d.payload) != echoSize,
		d.path != Direct && d.path != Management,
		d.slot > MaxSlot && d.slot != hostSlotByte,
		len(d.payload) > MaxHeartbeat:
		return datagram{}, errMalformed
	}
	return d, nil
}

// authentic tells whether the tag of a datagram that parseDatagram accepted is
// by key.
func authentic(b, key []byte) bool {
	body, tag := b[:len(b)-macSize], b[len(b)-macSize:]
	return hmac.Equal(tag, appendTag(nil, key, body))
}

// beacon is the payload of a beacon.
type beacon struct {
	address     netip.Addr
	fingerprint [fingerprintSize]byte
	name        string
}

func (b beacon) append(dst []byte) []byte {
	a := b.address.As16()
	dst = append(dst, a[:]...)
	dst = append(dst, b.fingerprint[:]...)
	return append(dst, b.name...)
}

func parseBeacon(p []byte) (beacon, error) {
	if len(p) <= beaconMin || len(p) > beaconMin+wire.MaxName {
		return beacon{}, errMalformed
	}
	b := beacon{address: netip.AddrFrom16([16]byte(p)), name: string(p[beaconMin:])}
	copy(b.fingerprint[:], p[16:])
	if !b.address.IsLinkLocalUnicast() {
		return beacon{}, errMalformed
	}
	return b, nil
}
