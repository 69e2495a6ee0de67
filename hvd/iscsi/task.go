package iscsi

import (
	"sync"
	"sync/atomic"
	"time"
)

// command is a SCSI command and how it may be treated.
type command struct {
	op   string // for messages
	cdb  cdb
	in   []byte // where data from the target go
	out  []byte // data for the target
	once bool   // never issue again once it may have been on the wire
	// short allows the target to answer with less data than in holds.
	short bool
}

// task is one command on one connection.
type task struct {
	command
	itt   uint32
	cmdSN uint32
	since time.Time // when it was put on the wire; zero before

	// mu is held while a reader or writer works on the caller's buffers. It is
	// never held together with conn.mu: its holder may wait for the network.
	mu       sync.Mutex
	released atomic.Bool  // the buffers are the caller's again; set with mu held
	taken    atomic.Int64 // bytes of out that the target asked for or got unasked
	got      int          // bytes of in; the reader's

	// Results, valid after done is closed.
	done   chan struct{}
	sent   bool // bytes of it may have reached the target
	status byte
	sense  Sense
	err    error // the connection was lost
}

// release gives the buffers back to the caller: nobody touches them after it.
func (t *task) release() {
	t.mu.Lock()
	t.released.Store(true)
	t.mu.Unlock()
}

// header is the SCSI Command PDU (RFC 7143, section 11.3), sent with the first
// immediate bytes of its data.
func (t *task) header(lun uint64, cmdSN, expStatSN uint32) (h header) {
	h[0] = byte(opSCSICommand)
	h[1] = flagFinal | 1 // attribute: simple
	n := 0
	switch {
	case len(t.in) > 0:
		h[1] |= flagRead
		n = len(t.in)
	case len(t.out) > 0:
		h[1] |= flagWrite
		n = len(t.out)
	}
	h.put64(8, lun)
	h.put32(16, t.itt)
	h.put32(20, uint32(n))
	h.put32(24, cmdSN)
	h.put32(28, expStatSN)
	copy(h[32:], t.cdb[:])
	return h
}

// encodeLUN is the first level of SAM-5 section 4.7: peripheral addressing
// below 256, flat space addressing below 16384, else the 8 bytes as they are.
func encodeLUN(lun uint64) uint64 {
	switch {
	case lun < 256:
		return lun << 48
	case lun < 16384:
		return (0x4000 | lun) << 48
	}
	return lun
}
