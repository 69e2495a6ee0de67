package iscsi

import (
	"bufio"
	"encoding/hex"
	"fmt"
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
	blockSize                    int
	user, secret                 string // CHAP, if there is a user
	ownUser, ownSecret           string // what the target proves itself with
	group                        int    // portal group tag
	damage                       bool   // PDUs may be lost or come twice

	mu     sync.Mutex
	disk   []byte
	serial string
	logins int
	names  int
	resets int          // LOGICAL UNIT RESETs
	zeroed int          // blocks of WRITE SAME and UNMAP
	count  map[byte]int // commands by operation code
	// intercept sees each PDU after the login first. handled: nothing more is
	// done with it.
	intercept func(c *fakeConn, h *header, data []byte) (handled bool)
	conns     map[net.Conn]bool
	sessions  map[string]*fakeConn // by initiator port
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
	shut    bool // the window is closed
	port    string
	over    chan struct{} // closed when it executes nothing any more
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
		group: 1, blockSize: 512, disk: make([]byte, 4<<20), serial: "one", count: map[byte]int{}, conns: map[net.Conn]bool{}, sessions: map[string]*fakeConn{},
	}
	f.wg.Go(f.accept)
	t.Cleanup(func() {
		ln.Close()
		f.dropAll()
		f.wg.Wait()
	})
	return f
}

func (f *fakeTarget) accept() { f.acceptOn(f.ln) }

// second opens another portal of the target.
func (f *fakeTarget) second() net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.wg.Go(func() { f.acceptOn(ln) })
	f.t.Cleanup(func() { ln.Close() })
	return ln
}

func (f *fakeTarget) acceptOn(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.conns[nc] = true
		f.mu.Unlock()
		f.wg.Go(func() {
			c := &fakeConn{f: f, nc: nc, br: bufio.NewReader(nc), framing: framing{maxData: 1 << 24}, writes: map[uint32]*fakeWrite{}, over: make(chan struct{})}
			c.serve()
			nc.Close()
			close(c.over)
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
	f.names++
	return Config{
		Portal: f.ln.Addr().String(), Target: "iqn.test:t", Initiator: fmt.Sprintf("iqn.test:i%d", f.names),
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
	if c.shut {
		h.put32(32, c.expCmd-1)
	}
	w := bufio.NewWriter(c.nc)
	if c.framing.write(w, &h, data) == nil {
		w.Flush()
	}
}

// readLogin takes a Login Request and its keys.
func (c *fakeConn) readLogin() (h header, keys keyList, ok bool) {
	if c.framing.readHeader(c.br, &h) != nil || h.op() != opLoginRequest {
		return h, nil, false
	}
	text := make([]byte, h.dataLen())
	if c.framing.readData(c.br, &h, text) != nil {
		return h, nil, false
	}
	c.expCmd = h.u32(24)
	keys, err := parseKeys(text)
	return h, keys, err == nil
}

func (c *fakeConn) answerLogin(h *header, flags byte, keys keyList) {
	r := header{0: byte(opLoginResponse), 1: flags}
	copy(r[8:14], h[8:14])
	r.put32(16, h.itt())
	c.send(r, keys.encode(), true)
}

func (c *fakeConn) refuseLogin(h *header, class, detail byte) bool {
	r := header{0: byte(opLoginResponse), 1: h[1], 36: class, 37: detail}
	r.put32(16, h.itt())
	c.send(r, nil, true)
	return false
}

// login is the target's side; discovery is what the initiator wants.
func (c *fakeConn) login() (ok, discovery bool) {
	var challenge chapChallenge
	for {
		h, keys, ok := c.readLogin()
		if !ok {
			return false, false
		}
		if kind, _ := keys.get("SessionType"); kind == "Discovery" {
			discovery = true
		}
		if name, ok := keys.get("InitiatorName"); ok {
			c.port = fmt.Sprintf("%s,%x", name, h[8:14])
		}
		same, first := h[1]&^byte(flagTransit|3), keyList{{"TargetPortalGroupTag", strconv.Itoa(c.f.group)}}
		answer, answered := keys.get("CHAP_R")
		switch {
		case h[1]>>2&3 == stageOperational:
			c.reinstate()
			c.answerLogin(&h, h[1], c.f.operational(keys))
			c.framing.headerDigest, c.framing.dataDigest = c.f.digests, c.f.digests
			return true, discovery
		case c.f.user == "":
			c.answerLogin(&h, h[1], append(first, keyValue{"AuthMethod", "None"}))
		case answered:
			want := "0x" + hex.EncodeToString(chapDigest(challenge.id, c.f.secret, challenge.bytes[:]))
			if user, _ := keys.get("CHAP_N"); user != c.f.user || answer != want {
				return c.refuseLogin(&h, 2, 1), false
			}
			c.answerLogin(&h, h[1], c.f.prove(keys))
		case len(keys) == 1: // CHAP_A
			challenge = chapChallenge{id: 77, bytes: [16]byte{1, 2, 3}}
			c.answerLogin(&h, same, append(challenge.keys(), keyValue{"CHAP_A", chapMD5}))
		default:
			c.answerLogin(&h, same, append(first, keyValue{"AuthMethod", "CHAP"}))
		}
	}
}

// prove answers the initiator's challenge, if there is one.
func (f *fakeTarget) prove(keys keyList) keyList {
	id, ok := keys.get("CHAP_I")
	if !ok || f.ownSecret == "" {
		return nil
	}
	text, _ := keys.get("CHAP_C")
	n, _ := strconv.Atoi(id)
	challenge, err := binaryValue(text)
	if err != nil {
		f.t.Error(err)
	}
	return keyList{{"CHAP_N", f.ownUser}, {"CHAP_R", "0x" + hex.EncodeToString(chapDigest(byte(n), f.ownSecret, challenge))}}
}

// operational are the target's values.
func (f *fakeTarget) operational(asked keyList) keyList {
	yes := map[bool]string{true: "Yes", false: "No"}
	digest := map[bool]string{true: "CRC32C", false: "None"}[f.digests]
	if v, _ := asked.get("HeaderDigest"); v == "CRC32C" && !f.digests {
		digest = "Reject"
	}
	return keyList{
		{"ImmediateData", yes[f.immediate > 0]},
		{"FirstBurstLength", strconv.Itoa(max(f.immediate, 512))},
		{"MaxBurstLength", strconv.Itoa(f.maxBurst)},
		{"MaxRecvDataSegmentLength", strconv.Itoa(f.maxRecv)},
		{"HeaderDigest", digest},
		{"DataDigest", digest},
	}
}

// reinstate makes an end to the initiator port's older session, as RFC 7143 section
// 6.3.5 asks of a target.
func (c *fakeConn) reinstate() {
	c.f.mu.Lock()
	old := c.f.sessions[c.port]
	c.f.sessions[c.port] = c
	c.f.mu.Unlock()
	if old != nil {
		old.nc.Close()
		<-old.over
	}
}

func (c *fakeConn) serve() {
	ok, discovery := c.login()
	if !ok {
		return
	}
	if discovery {
		c.listTargets()
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
			if sn := h.u32(24); sn != c.expCmd && !c.f.damage {
				c.f.t.Errorf("CmdSN %d, expected %d", sn, c.expCmd)
			} else if after(c.expCmd, sn) {
				continue // it came twice
			} else if after(sn, c.expCmd) {
				return // one is missing
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
			if !c.f.damage {
				c.f.t.Errorf("Data-Out at %d of %d bytes makes no sense", h.bufferOffset(), len(data))
			}
			c.nc.Close()
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
		c.f.mu.Lock()
		if h[1]&0x7f == functionResetUnit {
			c.f.resets++
		}
		c.f.mu.Unlock()
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
