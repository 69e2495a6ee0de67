package iscsi

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestResetUnit: a reset ends what is under way: what may be repeated is, and the
// outcome of the rest is unknown. Nothing is sent while it runs.
func TestResetUnit(t *testing.T) {
	f := newFake(t)
	fillRandom(f.disk[:512], 3)
	s := dialTest(t, f.config())
	var resetting, early atomic.Bool
	reads, swaps, go1 := make(chan bool, 1), make(chan bool, 1), make(chan bool)
	f.mu.Lock()
	f.intercept = func(c *fakeConn, h *header, _ []byte) bool {
		switch {
		case h.op() == opSCSICommand && resetting.Load():
			early.Store(true)
		case h.op() == opSCSICommand && h[32] == scsiRead16 && len(reads) == 0:
			reads <- true
			return true
		case h.op() == opSCSICommand && h[32] == scsiCompareAndWrite && len(swaps) == 0:
			swaps <- true
			return true
		case h.op() == opTaskRequest:
			resetting.Store(true)
			<-go1
			resetting.Store(false)
		}
		return false
	}
	f.mu.Unlock()
	read, swap, reset := make(chan error), make(chan error), make(chan error)
	got := make([]byte, 512)
	go func() { read <- s.Read(t.Context(), 0, got) }()
	go func() {
		_, err := s.CompareAndWrite(t.Context(), 1, make([]byte, 512), got)
		swap <- err
	}()
	waitFor(t, func() bool { return len(reads) == 1 && len(swaps) == 1 })
	go func() { reset <- s.ResetUnit(t.Context()) }()
	waitFor(t, resetting.Load)
	third := make(chan error)
	go func() { third <- s.Sync(t.Context()) }()
	waitFor(t, func() bool {
		s.cur.mu.Lock()
		defer s.cur.mu.Unlock()
		return len(s.cur.queue) == 1
	})
	go1 <- true
	if err := <-reset; err != nil || f.resets != 1 {
		t.Errorf("%v, %d resets", err, f.resets)
	}
	if err := <-read; err != nil || !bytes.Equal(got, f.disk[:512]) || f.counted(scsiRead16) != 2 {
		t.Errorf("read: %v, issued %d times", err, f.counted(scsiRead16))
	}
	if err := <-swap; !errors.Is(err, ErrUnknownOutcome) || f.counted(scsiCompareAndWrite) != 1 {
		t.Errorf("COMPARE AND WRITE: %v, issued %d times", err, f.counted(scsiCompareAndWrite))
	}
	if err := <-third; err != nil || early.Load() || s.Logins() != 1 {
		t.Errorf("command behind the reset: %v; sent during it: %v; %d logins", err, early.Load(), s.Logins())
	}
}

// TestResetRefused: a target that can't reset says so, and one that never answers
// doesn't hold the caller for ever.
func TestResetRefused(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.Timeout = 200 * time.Millisecond
	s := dialTest(t, cfg)
	var mute atomic.Bool
	f.mu.Lock()
	f.intercept = func(c *fakeConn, h *header, _ []byte) bool {
		if h.op() == opTaskRequest && !mute.Load() {
			r := header{0: byte(opTaskResponse), 1: flagFinal, 2: 5}
			r.put32(16, h.itt())
			c.send(r, nil, true)
		}
		return h.op() == opTaskRequest
	}
	f.mu.Unlock()
	if err := s.ResetUnit(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	mute.Store(true)
	if err := s.ResetUnit(t.Context()); !errors.Is(err, ErrUnknownOutcome) || !strings.Contains(err.Error(), "didn't answer LOGICAL UNIT RESET") {
		t.Errorf("got %v", err)
	}
	mustDo(t, "sync", s.Sync(t.Context()))
}

// TestAbortRefused: a command that the target won't abort is answered later on,
// which disturbs nobody.
func TestAbortRefused(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	var held header
	arrived, refused := make(chan struct{}), make(chan struct{})
	f.mu.Lock()
	f.intercept = func(c *fakeConn, h *header, _ []byte) bool {
		switch {
		case h.op() == opSCSICommand && h[32] == scsiRead16 && held == header{}:
			held = *h
			close(arrived)
			return true
		case h.op() == opTaskRequest:
			if h.u32(20) != held.itt() || h.u32(32) != held.u32(24) {
				t.Errorf("ABORT TASK of tag 0x%x, CmdSN %d; want 0x%x, %d", h.u32(20), h.u32(32), held.itt(), held.u32(24))
			}
			r := header{0: byte(opTaskResponse), 1: flagFinal, 2: 255}
			r.put32(16, h.itt())
			c.send(r, nil, true)
			c.command(&held, nil)
			close(refused)
			return true
		}
		return false
	}
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if err := s.Read(ctx, 0, make([]byte, 512)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-refused
	mustDo(t, "sync", s.Sync(t.Context()))
	if s.Logins() != 1 {
		t.Errorf("%d logins", s.Logins())
	}
}

// TestAskedToLogOut: a target that asks for a logout gets one when what is under
// way is done, so that no outcome is unknown.
func TestAskedToLogOut(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	var loggedOut atomic.Bool
	onFirst(f, scsiCompareAndWrite, func(c *fakeConn, h *header) {
		ask := header{0: byte(opAsync), 1: flagFinal, 36: 1}
		ask.put32(16, noTag)
		ask.put32(44, 10)
		c.send(ask, nil, true)
		c.f.mu.Lock()
		c.f.intercept = func(c *fakeConn, h *header, _ []byte) bool {
			loggedOut.CompareAndSwap(false, h.op() == opLogoutRequest)
			return false
		}
		c.f.mu.Unlock()
		w := &fakeWrite{h: *h, data: append(make([]byte, 512), bytes.Repeat([]byte{1}, 512)...), got: 1024}
		time.AfterFunc(100*time.Millisecond, func() { c.pull(w) })
	})
	swapped, err := s.CompareAndWrite(t.Context(), 1, make([]byte, 512), bytes.Repeat([]byte{1}, 512))
	if !swapped || err != nil {
		t.Errorf("%v %v", swapped, err)
	}
	mustDo(t, "write", s.Write(t.Context(), 0, make([]byte, 512)))
	waitFor(t, func() bool { return s.Logins() == 2 })
	if !loggedOut.Load() {
		t.Error("no logout came")
	}
}

// TestClosedWindow: a target that answers pings but takes no command any more is
// left.
func TestClosedWindow(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.Timeout = 200 * time.Millisecond
	s := dialTest(t, cfg)
	f.mu.Lock()
	f.intercept = func(c *fakeConn, h *header, _ []byte) bool {
		c.shut = c.n == 1
		return false
	}
	f.mu.Unlock()
	mustDo(t, "the last command that is taken", s.Sync(t.Context()))
	// Two that the old window may still have let through, and many that it doesn't.
	events := make(chan error, 40)
	for range 40 {
		go func() { events <- s.Sync(t.Context()) }()
	}
	for range 40 {
		mustDo(t, "sync", <-events)
	}
	if s.Logins() != 2 {
		t.Errorf("%d logins", s.Logins())
	}
}

// TestGrownUnit: blocks that were added are used after the target's hint.
func TestGrownUnit(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	before, _ := s.Capacity()
	if err := s.Write(t.Context(), before, make([]byte, 512)); !errors.Is(err, ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
	onFirst(f, scsiRead16, func(c *fakeConn, h *header) {
		c.f.mu.Lock()
		c.f.disk = append(c.f.disk, make([]byte, 1<<20)...)
		c.f.mu.Unlock()
		c.status(h.itt(), statusCheckCondition, fixedSense(senseUnitAttention, 0x2a, 0x09))
	})
	mustDo(t, "read", s.Read(t.Context(), 0, make([]byte, 512)))
	if now, _ := s.Capacity(); now != before+2048 || s.Logins() != 1 {
		t.Errorf("%d blocks after %d, %d logins", now, before, s.Logins())
	}
	mustDo(t, "write to the new end", s.Write(t.Context(), before+2047, make([]byte, 512)))
}

// TestShrunkUnit: a unit that lost blocks isn't written to any more.
func TestShrunkUnit(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	onFirst(f, scsiRead16, func(c *fakeConn, h *header) {
		c.f.mu.Lock()
		c.f.disk = c.f.disk[:1<<20]
		c.f.mu.Unlock()
		c.status(h.itt(), statusCheckCondition, fixedSense(senseUnitAttention, 0x2a, 0x09))
	})
	if err := s.Read(t.Context(), 0, make([]byte, 512)); err == nil || !strings.Contains(err.Error(), "another logical unit") {
		t.Errorf("got %v", err)
	}
}

// TestZero fills with zeros by WRITE SAME, and by WRITE where there is none.
func TestZero(t *testing.T) {
	for _, able := range []bool{true, false} {
		f := newFake(t)
		s := dialTest(t, f.config())
		f.mu.Lock()
		f.intercept = func(c *fakeConn, h *header, _ []byte) bool {
			if h.op() == opSCSICommand && h[32] == scsiWriteSame16 && !able {
				c.status(h.itt(), statusCheckCondition, fixedSense(senseIllegalRequest, 0x20, 0))
				return true
			}
			return false
		}
		f.mu.Unlock()
		fillRandom(f.disk, 1)
		want := bytes.Clone(f.disk)
		clear(want[3*512 : 3003*512])
		mustDo(t, "zero", s.Zero(t.Context(), 3, 3000))
		if !bytes.Equal(f.disk, want) {
			t.Errorf("WRITE SAME %v: other blocks are zero", able)
		}
		same, write := f.counted(scsiWriteSame16), f.counted(scsiWrite16)
		if able && (same != 3 || write != 0) || !able && (same != 1 || write == 0) {
			t.Errorf("WRITE SAME %v: %d of them, %d WRITEs", able, same, write)
		}
		if err := s.Zero(t.Context(), uint64(len(f.disk)/512-1), 2); !errors.Is(err, ErrRange) {
			t.Errorf("beyond the end: %v", err)
		}
	}
}

func TestUnmap(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	fillRandom(f.disk, 1)
	want := bytes.Clone(f.disk)
	clear(want[5*512 : 2505*512])
	mustDo(t, "unmap", s.Unmap(t.Context(), 5, 2500))
	if !bytes.Equal(f.disk, want) || f.counted(scsiUnmap) != 3 {
		t.Errorf("%d UNMAPs; right blocks: %v", f.counted(scsiUnmap), bytes.Equal(f.disk, want))
	}
	s.unit.provision.unmap = false
	if err := s.Unmap(t.Context(), 5, 1); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

// TestPongLimit: answers to pings that the target doesn't take aren't kept
// without end.
func TestPongLimit(t *testing.T) {
	c := newTestConn()
	ping := header{0: byte(opNopIn)}
	for i := range maxPongs + 1 {
		err := c.nopIn(&ping, make([]byte, 1000))
		if (err != nil) != (i == maxPongs) {
			t.Fatalf("ping %d: %v", i, err)
		}
	}
}

// newTestConn is a connection without goroutines and network.
func newTestConn() *conn {
	c := &conn{tasks: map[uint32]*task{}, functions: map[uint32]*function{}, dead: make(chan struct{}), timeout: time.Second}
	c.wake.L = &c.mu
	c.p = defaultParams()
	return c
}
