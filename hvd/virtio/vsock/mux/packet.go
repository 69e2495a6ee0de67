package mux

import (
	"encoding/binary"
	"errors"

	"github.com/duet-ft/duet/hvd/virtio/vsock"
)

// HostCID is the host's context ID (VIRTIO 1.2 section 5.10.4).
const HostCID = 2

const typeStream = 1

// op is what a packet does (section 5.10.6).
type op uint16

const (
	opRequest       op = 1
	opResponse      op = 2
	opReset         op = 3
	opShutdown      op = 4
	opData          op = 5 // VIRTIO_VSOCK_OP_RW
	opCreditUpdate  op = 6
	opCreditRequest op = 7
)

// Flags of a shutdown: the sender won't receive, or won't send, any more.
const (
	shutdownReceive = 1
	shutdownSend    = 2
)

// header is struct virtio_vsock_hdr but for the length; the package comment of
// vsock has its layout.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	typ              uint16
	op               op
	flags            uint32
	bufAlloc, fwdCnt uint32
}

// encode returns a packet.
func (h header) encode(payload []byte) []byte {
	le := binary.LittleEndian
	p := make([]byte, vsock.HeaderSize, vsock.HeaderSize+len(payload))
	le.PutUint64(p, h.srcCID)
	le.PutUint64(p[8:], h.dstCID)
	le.PutUint32(p[16:], h.srcPort)
	le.PutUint32(p[20:], h.dstPort)
	le.PutUint32(p[24:], uint32(len(payload)))
	le.PutUint16(p[28:], h.typ)
	le.PutUint16(p[30:], uint16(h.op))
	le.PutUint32(p[32:], h.flags)
	le.PutUint32(p[36:], h.bufAlloc)
	le.PutUint32(p[40:], h.fwdCnt)
	return append(p, payload...)
}

// decode takes a packet apart. The payload is part of p.
func decode(p []byte) (h header, payload []byte, err error) {
	le := binary.LittleEndian
	if len(p) < vsock.HeaderSize || uint64(le.Uint32(p[24:])) != uint64(len(p)-vsock.HeaderSize) {
		return header{}, nil, errors.New("vsock packet isn't as long as it says")
	}
	return header{
		srcCID: le.Uint64(p), dstCID: le.Uint64(p[8:]),
		srcPort: le.Uint32(p[16:]), dstPort: le.Uint32(p[20:]),
		typ: le.Uint16(p[28:]), op: op(le.Uint16(p[30:])), flags: le.Uint32(p[32:]),
		bufAlloc: le.Uint32(p[36:]), fwdCnt: le.Uint32(p[40:]),
	}, p[vsock.HeaderSize:], nil
}
