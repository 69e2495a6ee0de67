package iscsi

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// relay stands between an initiator and a target, and sees PDU after PDU. Its
// sessions have no digests, or both.
type relay struct {
	ln      net.Listener
	to      string
	digests bool
	// meddle sees each PDU, as it is on the wire, and says what goes on instead;
	// cut ends the connection after that. n counts PDUs of all connections, from
	// 1; login is true until the full feature phase begins.
	meddle func(n int, fromTarget, login bool, pdu []byte) (out []byte, cut bool)

	count atomic.Int64
	conns sync.WaitGroup
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, to: to}
	r.conns.Go(func() {
		for {
			from, err := ln.Accept()
			if err != nil {
				return
			}
			r.conns.Go(func() { r.serve(from) })
		}
	})
	t.Cleanup(func() { ln.Close() })
	return r
}

func (r *relay) serve(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer to.Close()
	var full atomic.Bool
	both := sync.WaitGroup{}
	both.Go(func() { r.pass(to, from, false, &full); to.Close(); from.Close() })
	both.Go(func() { r.pass(from, to, true, &full); to.Close(); from.Close() })
	both.Wait()
}

// pass copies PDUs one way.
func (r *relay) pass(dst, src net.Conn, fromTarget bool, full *atomic.Bool) {
	in := bufio.NewReaderSize(src, 1<<20)
	for {
		var pdu bytes.Buffer
		tee := io.TeeReader(in, &pdu)
		var h header
		f := framing{maxData: 1 << 24}
		if _, err := io.ReadFull(tee, h[:]); err != nil {
			return
		}
		login := !full.Load() || h.op() == opLoginRequest
		if r.digests && !login {
			f.headerDigest, f.dataDigest = true, true
		}
		rest := h.ahsLen() + h.dataLen() + padding(h.dataLen())
		if f.headerDigest {
			rest += 4
		}
		if f.dataDigest && h.dataLen() > 0 {
			rest += 4
		}
		if _, err := io.CopyN(io.Discard, tee, int64(rest)); err != nil {
			return
		}
		if h.op() == opLoginResponse && h.has(flagTransit) && h[1]&3 == stageFull && h[36] == 0 {
			full.Store(true)
		}
		out, cut := pdu.Bytes(), false
		if n := int(r.count.Add(1)); r.meddle != nil {
			out, cut = r.meddle(n, fromTarget, login, out)
		}
		if _, err := dst.Write(out); err != nil || cut {
			return
		}
	}
}
