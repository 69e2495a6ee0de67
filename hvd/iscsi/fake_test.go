package iscsi

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
)

// fakeTarget is a small target in memory, whose answers a test can bend.
type fakeTarget struct {
	t  *testing.T
	ln net.Listener

	// Values for negotiation.
	immediate, maxRecv, maxBurst int // immediate 0: No
	window                       uint32
	digests                      bool

	mu     sync.Mutex
	disk   []byte
	serial string
	logins int
	count  map[byte]int // commands by operation code
	// intercept sees each PDU after the login first. handled: nothing more is
	// done with it.
	intercept func(c *fakeConn, h *header, data []byte) (handled bool)
	conns     map[net.Conn]bool
	wg        sync.WaitGroup
}

// fakeConn is one connection to a fakeTarget.
type fakeConn struct {
	f       *fakeTarget
	n       int // 1 for the first login
	nc      net.Conn
	br      *bufio.Reader
	framing framing
	statSN  uint32
	expCmd  uint32
	writes  map[uint32]*fakeWrite
}

type fakeWrite struct {
	h    header
	data []byte
	got  int
}

func newFake(t *testing.T) *fakeTarget {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeTarget{
		t: t, ln: ln, immediate: 64 << 10, maxRecv: 64 << 10, maxBurst: 256 << 10, window: 32,
		disk: make([]byte, 4<<20), serial: "one", count: map[byte]int{}, conns: map[net.Conn]bool{},
	}
	f.wg.Go(f.accept)
	t.Cleanup(func() {
		ln.Close()
		f.dropAll()
		f.wg.Wait()
	})
	return f
}

func (f *fakeTarget) accept() {
	for {
		nc, err := f.ln.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.conns[nc] = true
		f.mu.Unlock()
		f.wg.Go(func() {
			c := &fakeConn{f: f, nc: nc, br: bufio.NewReader(nc), framing: framing{maxData: 1 << 24}, writes: map[uint32]*fakeWrite{}}
			c.serve()
			nc.Close()
			f.mu.Lock()
			delete(f.conns, nc)
			f.mu.Unlock()
		})
	}
}

// dropAll closes all connections.
func (f *fakeTarget) dropAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for nc := range f.conns {
		nc.Close()
	}
}

func (f *fakeTarget) config() Config {
	return Config{
		Portal: f.ln.Addr().String(), Target: "iqn.test:t", Initiator: "iqn.test:i",
		Timeout: 2 * time.Second, MaxOffline: 10 * time.Second, HeaderDigest: f.digests, DataDigest: f.digests,
	}
}

// counted returns how often a SCSI command came.
func (f *fakeTarget) counted(op byte) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[op]
}

// send writes a PDU with the sequence numbers filled in.
func (c *fakeConn) send(h header, data []byte, status bool) {
	h.put32(24, c.statSN)
	if status {
		c.statSN++
	}
	h.put32(28, c.expCmd)
	h.put32(32, c.expCmd+c.f.window-1)
	w := bufio.NewWriter(c.nc)
	if c.framing.write(w, &h, data) == nil {
		w.Flush()
	}
}

func (c *fakeConn) login() bool {
	for step := 0; ; step++ {
		var h header
		if c.framing.readHeader(c.br, &h) != nil || h.op() != opLoginRequest {
			return false
		}
		text := make([]byte, h.dataLen())
		if c.framing.readData(c.br, &h, text) != nil {
			return false
		}
		c.expCmd = h.u32(24)
		var r header
		r[0], r[1] = byte(opLoginResponse), h[1]
		copy(r[8:14], h[8:14])
		r.put32(16, h.itt())
		keys := keyList{{"AuthMethod", "None"}}
		operational := h[1]>>2&3 == stageOperational
		if operational {
			yes := map[bool]string{true: "Yes", false: "No"}
			digest := map[bool]string{true: "CRC32C", false: "None"}[c.f.digests]
			keys = keyList{
				{"ImmediateData", yes[c.f.immediate > 0]},
				{"FirstBurstLength", strconv.Itoa(max(c.f.immediate, 512))},
				{"MaxBurstLength", strconv.Itoa(c.f.maxBurst)},
				{"MaxRecvDataSegmentLength", strconv.Itoa(c.f.maxRecv)},
				{"HeaderDigest", digest},
				{"DataDigest", digest},
			}
		}
		c.send(r, keys.encode(), true)
		if operational {
			c.framing.headerDigest, c.framing.dataDigest = c.f.digests, c.f.digests
			return true
		}
	}
}

func (c *fakeConn) serve() {
	if !c.login() {
		return
	}
	c.f.mu.Lock()
	c.f.logins++
	c.n = c.f.logins
	c.f.mu.Unlock()
	for {
		var h header
		if c.framing.readHeader(c.br, &h) != nil {
			return
		}
		data := make([]byte, h.dataLen())
		if c.framing.readData(c.br, &h, data) != nil {
			return
		}
		if h[0]&flagImmediate == 0 && h.op() == opSCSICommand {
			if h.u32(24) != c.expCmd {
				c.f.t.Errorf("CmdSN %d, expected %d", h.u32(24), c.expCmd)
			}
			c.expCmd++
		}
		c.f.mu.Lock()
		if h.op() == opSCSICommand {
			c.f.count[h[32]]++
		}
		intercept := c.f.intercept
		c.f.mu.Unlock()
		if intercept != nil && intercept(c, &h, data) {
			continue
		}
		c.handle(&h, data)
	}
}

func (c *fakeConn) handle(h *header, data []byte) {
	var r header
	r.put32(16, h.itt())
	r.put32(20, noTag)
	r[1] = flagFinal
	switch h.op() {
	case opSCSICommand:
		if h.has(flagWrite) {
			w := &fakeWrite{h: *h, data: make([]byte, h.u32(20))}
			w.got = copy(w.data, data)
			c.writes[h.itt()] = w
			c.pull(w)
			return
		}
		c.command(h, nil)
	case opDataOut:
		w := c.writes[h.itt()]
		if w == nil || int(h.bufferOffset()) != w.got || len(data) > c.f.maxRecv {
			c.f.t.Errorf("Data-Out at %d of %d bytes makes no sense", h.bufferOffset(), len(data))
			return
		}
		w.got += copy(w.data[w.got:], data)
		if h.has(flagFinal) {
			c.pull(w)
		}
	case opNopOut:
		if h.itt() != noTag {
			r[0] = byte(opNopIn)
			c.send(r, data, true)
		}
	case opTaskRequest:
		r[0] = byte(opTaskResponse)
		c.send(r, nil, true)
	case opLogoutRequest:
		r[0] = byte(opLogoutReply)
		c.send(r, nil, true)
		c.nc.Close()
	}
}

// pull asks for the next burst of a write, or executes it.
func (c *fakeConn) pull(w *fakeWrite) {
	if w.got < len(w.data) {
		var r header
		r[0], r[1] = byte(opR2T), flagFinal
		r.put32(16, w.h.itt())
		r.put32(20, 0x77)
		r.put32(40, uint32(w.got))
		r.put32(44, uint32(min(len(w.data)-w.got, c.f.maxBurst)))
		c.send(r, nil, false)
		return
	}
	delete(c.writes, w.h.itt())
	c.command(&w.h, w.data)
}

// status sends a SCSI response.
func (c *fakeConn) status(itt uint32, status byte, sense []byte) {
	var r header
	r[0], r[1], r[3] = byte(opSCSIResponse), flagFinal, status
	r.put32(16, itt)
	var data []byte
	if sense != nil {
		data = append([]byte{0, byte(len(sense))}, sense...)
	}
	c.send(r, data, true)
}

// fixedSense is sense data in fixed format.
func fixedSense(key, code, qualifier byte) []byte {
	return []byte{0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0}
}

// reply sends data as one Data-In with status.
func (c *fakeConn) reply(h *header, data []byte) {
	var r header
	r[0], r[1] = byte(opDataIn), flagFinal|flagStatus
	r.put32(16, h.itt())
	r.put32(20, noTag)
	c.send(r, data[:min(len(data), int(h.u32(20)))], true)
}

func (c *fakeConn) command(h *header, out []byte) {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	cdb := h[32:]
	at := func() int { return int(binary.BigEndian.Uint64(cdb[2:])) * 512 }
	switch cdb[0] {
	case scsiInquiry:
		b := make([]byte, 64)
		copy(b[8:], "Fake    target          1   ")
		switch {
		case cdb[1] == 1 && cdb[2] == 0x80:
			b = append([]byte{0, 0x80, 0, byte(len(f.serial))}, f.serial...)
		case cdb[1] == 1:
			c.status(h.itt(), statusCheckCondition, fixedSense(senseIllegalRequest, 0x24, 0))
			return
		}
		c.reply(h, b)
	case scsiServiceIn16:
		b := make([]byte, 32)
		binary.BigEndian.PutUint64(b, uint64(len(f.disk)/512-1))
		binary.BigEndian.PutUint32(b[8:], 512)
		c.reply(h, b)
	case scsiRead16:
		c.reply(h, f.disk[at():][:h.u32(20)])
	case scsiWrite16:
		copy(f.disk[at():], out)
		c.status(h.itt(), statusGood, nil)
	case scsiCompareAndWrite:
		n := len(out) / 2
		if !bytes.Equal(f.disk[at():][:n], out[:n]) {
			c.status(h.itt(), statusCheckCondition, fixedSense(senseMiscompare, 0x1d, 0))
			return
		}
		copy(f.disk[at():], out[n:])
		c.status(h.itt(), statusGood, nil)
	case scsiReserveIn:
		c.reply(h, make([]byte, 8))
	case scsiTestUnitReady, scsiSyncCache16:
		c.status(h.itt(), statusGood, nil)
	default:
		c.status(h.itt(), statusCheckCondition, fixedSense(senseIllegalRequest, 0x20, 0))
	}
}

// onFirst intercepts the n-th command with an operation code.
func onFirst(f *fakeTarget, op byte, do func(c *fakeConn, h *header)) {
	var once sync.Once
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intercept = func(c *fakeConn, h *header, _ []byte) (handled bool) {
		if h.op() == opSCSICommand && h[32] == op {
			once.Do(func() {
				handled = true
				do(c, h)
			})
		}
		return handled
	}
}
