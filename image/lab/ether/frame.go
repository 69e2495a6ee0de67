// Package ether carries Ethernet frames between QEMU machines and the test process, in user space and without root:
// ports for QEMU's stream network backend, a learning hub, and a cable between two ports; with faults on demand
// (cut, delay) and counters.
//
// Used by image/lab. Imports nothing of ours.
//
// Wire format of QEMU's "-netdev stream": each frame, without its check sequence, after its length in 4 bytes,
// big-endian:
//
//	+0  uint32  length n, 14 to MaxFrame
//	+4  n bytes destination (6), source (6), EtherType (2), payload
//
//	machine --from machine--> Port --> Hub or Cable --> other Port --to machine--> machine
package ether

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

const (
	// MaxFrame is the largest frame that is carried, in bytes: jumbo frames and what a virtual NIC makes by
	// segmentation offload (64 KiB and headers).
	MaxFrame = 64<<10 + 256
	// minFrame is an Ethernet header.
	minFrame = 14
)

// MAC is a hardware address that can be a map's key.
type MAC [6]byte

// String is the usual notation.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// IsMulticast reports whether the address names a group; broadcast is one.
func (m MAC) IsMulticast() bool { return m[0]&1 != 0 }

// Broadcast is the address of all stations.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ReadFrame reads one frame from QEMU's stream. A length that no frame has is an error: the stream is lost then.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < minFrame || n > MaxFrame {
		return nil, fmt.Errorf("a frame of %d bytes on the stream (%d to %d are possible)", n, minFrame, MaxFrame)
	}
	f := make([]byte, n)
	_, err := io.ReadFull(r, f)
	return f, err
}

// AppendFrame appends f with its length in front.
func AppendFrame(dst, f []byte) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(f))), f...)
}

// addresses returns destination and source of a frame that has at least a header.
func addresses(f []byte) (dst, src MAC) {
	return MAC(f[0:6]), MAC(f[6:12])
}

// IsReset reports whether the frame is a TCP segment with the RST flag (RFC 9293, section 3.1), over IPv4 or IPv6
// without extension headers. Any bytes may be given.
func IsReset(f []byte) bool {
	const (
		typeIPv4, typeIPv6 = 0x0800, 0x86dd
		protocolTCP        = 6
		flagsAt            = 13
		rst                = 0x04
	)
	if len(f) < minFrame {
		return false
	}
	ip := f[minFrame:]
	var tcp []byte
	switch binary.BigEndian.Uint16(f[12:]) {
	case typeIPv4:
		if len(ip) < 20 || ip[9] != protocolTCP {
			return false
		}
		header := int(ip[0]&0x0f) * 4
		fragment := binary.BigEndian.Uint16(ip[6:]) & 0x1fff
		if header < 20 || header > len(ip) || fragment != 0 {
			return false
		}
		tcp = ip[header:]
	case typeIPv6:
		if len(ip) < 40 || ip[6] != protocolTCP {
			return false
		}
		tcp = ip[40:]
	default:
		return false
	}
	return len(tcp) > flagsAt && tcp[flagsAt]&rst != 0
}

// Concerns reports whether the frame is an ARP packet, or an IPv4 packet from or to an address. Any bytes may be given.
func Concerns(f []byte, address [4]byte) bool {
	const (
		typeIPv4, typeARP = 0x0800, 0x0806
		source, target    = minFrame + 12, minFrame + 16
	)
	if len(f) < target+4 {
		return false
	}
	switch binary.BigEndian.Uint16(f[12:]) {
	case typeARP:
		return true
	case typeIPv4:
		return [4]byte(f[source:]) == address || [4]byte(f[target:]) == address
	}
	return false
}
