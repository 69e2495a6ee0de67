package iscsi

import (
	"bufio"
	"bytes"
	"net"
	"testing"
	"time"
)

// fuzzConn is a connection with a read (tag 1), a write (2), an ABORT TASK (3) and a
// LOGICAL UNIT RESET (4) under way, whose target says what is in p. Nothing is sent.
func fuzzConn(p []byte) (c *conn, read, write *task) {
	c = newTestConn()
	c.nc = silence{}
	c.br = bufio.NewReader(bytes.NewReader(p))
	c.framing.maxData = ourMaxRecv
	c.maxCmdSN = 32
	read = &task{command: command{op: "READ", in: make([]byte, 4096)}, itt: 1, since: time.Now(), done: make(chan struct{})}
	write = &task{command: command{op: "WRITE", out: make([]byte, 8192)}, itt: 2, since: time.Now(), done: make(chan struct{})}
	c.tasks[1], c.tasks[2] = read, write
	c.functions[3] = &function{kind: functionAbortTask, task: write, since: time.Now(), done: make(chan struct{})}
	c.functions[4] = &function{kind: functionResetUnit, since: time.Now(), done: make(chan struct{})}
	return c, read, write
}

type silence struct{ net.Conn }

func (silence) Close() error { return nil }

// FuzzConn lets a target say anything while commands are under way.
func FuzzConn(f *testing.F) {
	pdu := func(h header, tag uint32, data []byte) []byte {
		h[1] |= flagFinal
		h.put32(16, tag)
		return encodePDU(f, framing{}, h, data)
	}
	more := header{0: byte(opR2T)}
	more.put32(44, 4096)
	rest := header{0: byte(opDataIn), 1: flagStatus}
	rest.put32(40, 100)
	f.Add(bytes.Join([][]byte{pdu(header{0: byte(opDataIn)}, 1, make([]byte, 100)), pdu(rest, 1, make([]byte, 3996))}, nil))
	f.Add(bytes.Join([][]byte{pdu(more, 2, nil), pdu(header{0: byte(opSCSIResponse)}, 2, nil)}, nil))
	f.Add(bytes.Join([][]byte{pdu(header{0: byte(opTaskResponse)}, 3, nil), pdu(header{0: byte(opTaskResponse)}, 4, nil)}, nil))
	f.Add(pdu(header{0: byte(opAsync), 36: 1}, noTag, nil))
	f.Add(bytes.Repeat(pdu(header{0: byte(opNopIn), 20: 1}, noTag, []byte("ping")), maxPongs+2))
	f.Add(pdu(header{0: byte(opSCSIResponse), 3: statusCheckCondition}, 1, append([]byte{0, 18}, fixedSense(6, 0x2a, 9)...)))
	for op := range byte(0x40) {
		f.Add(pdu(header{0: op}, uint32(op%5), []byte{0, 1, 2}))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		c, read, write := fuzzConn(p)
		c.fail(c.readLoop())
		c.wg.Wait()
		for _, x := range []*task{read, write} {
			select {
			case <-x.done:
			default:
				t.Fatalf("%s has no end", x.op)
			}
		}
		if read.err == nil && read.status == statusGood && read.got != len(read.in) {
			t.Fatalf("a read of %d bytes of %d is good", read.got, len(read.in))
		}
		if write.err == nil && write.status == statusGood && int(write.taken.Load()) < len(write.out) {
			t.Fatal("a write that the target never took is good")
		}
		if len(c.control) > maxControl || c.pongs > maxPongs {
			t.Fatalf("%d PDUs are queued, %d of them pongs", len(c.control), c.pongs)
		}
	})
}

// FuzzDiscovery decodes a portal's list of targets.
func FuzzDiscovery(f *testing.F) {
	f.Add([]byte("TargetName=iqn.a\x00TargetAddress=[2001:db8::1]:3260,1\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		list, err := parseTargets(p, "h:1")
		if err != nil {
			return
		}
		for _, x := range list {
			if len(x.Portals) == 0 || len(x.Portals) > maxFoundPortals || checkName("target", x.Target) != nil {
				t.Fatalf("%+v", x)
			}
		}
	})
}
