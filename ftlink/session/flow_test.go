package session

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/wire"
)

// TestPages moves 64 MiB of pages and finds each as it was.
func TestPages(t *testing.T) {
	const total, batch = 64 << 20 / wire.PageSize, 64
	memory := make([]byte, total*wire.PageSize)
	r := rand.New(rand.NewPCG(1, 1))
	for p := range total {
		page := memory[p*wire.PageSize:][:wire.PageSize]
		switch p % 4 {
		case 1: // noise
			for i := range page {
				page[i] = byte(r.Uint32())
			}
		case 2, 3: // compressible
			copy(page, bytes.Repeat([]byte{byte(p), byte(p >> 8), 7, byte(r.Uint32())}, wire.PageSize/4))
		}
	}
	a, b, ha, hb := configs()
	got := make([]byte, len(memory))
	pages := 0
	ended := make(chan error, 1)
	hb.frame = func(_ *Conn, f wire.Frame) {
		if f.Type == wire.TypeSeedEnd {
			ended <- nil
			return
		}
		if err := wire.DecodePages(f.Payload, func(n int, data []byte) error {
			copy(got[n*wire.PageSize:], data)
			pages++
			return nil
		}); err != nil {
			ended <- err
		}
	}
	la, _ := start(t, a)
	start(t, b)
	c := ha.want(t, "up").conn
	begin := time.Now()
	for p := 0; p < total; p += batch {
		numbers := make([]int, batch)
		for i := range numbers {
			numbers[i] = p + i
		}
		if err := c.SendPages(numbers, func(n int) []byte {
			return memory[n*wire.PageSize:][:wire.PageSize]
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Send(wire.Frame{Type: wire.TypeSeedEnd}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(6 * patient):
		t.Fatal("the pages don't arrive")
	}
	s := la.Stats()
	t.Logf("64 MiB in %v; %d bytes and %d writes on the wire", time.Since(begin), s.BytesOut, s.Writes)
	if pages != total || !bytes.Equal(got, memory) {
		t.Errorf("%d pages arrived, equal: %v", pages, bytes.Equal(got, memory))
	}
	if s.BytesOut > 64<<20*30/100 {
		t.Errorf("%d bytes on the wire: a quarter is noise, the rest compresses", s.BytesOut)
	}
	if records := s.BytesOut / (16 << 10); s.Writes > records/2 {
		t.Errorf("%d writes for %d bytes, %d records", s.Writes, s.BytesOut, records)
	}
}

// TestSmallLog: a small batch is one write, and leaves without being asked to.
func TestSmallLog(t *testing.T) {
	a, b, ha, hb := configs()
	la, _ := start(t, a)
	start(t, b)
	c := ha.want(t, "up").conn
	hb.want(t, "up")
	const rounds = 50
	before := la.Stats()
	for i := range rounds {
		if err := c.SendLog(uint64(i*5), []byte("tick!")); err != nil {
			t.Fatal(err)
		}
		hb.want(t, "frame")
	}
	if err := c.Flush(); err != nil { // the counters come behind the writes
		t.Fatal(err)
	}
	after := la.Stats()
	if n := after.Writes - before.Writes; n != rounds {
		t.Errorf("%d writes for %d batches", n, rounds)
	}
	// Header, LSN and bytes; record header, content type and tag of TLS.
	if n, want := after.BytesOut-before.BytesOut, uint64(rounds*(8+8+5+5+1+16)); n != want {
		t.Errorf("%d bytes for %d batches, want %d", n, rounds, want)
	}
}

// TestBackPressure: a reader that stops makes the sender stop, not grow.
func TestBackPressure(t *testing.T) {
	a, b, ha, hb := configs()
	a.Stall, b.Stall = time.Minute, time.Minute
	gate := make(chan struct{})
	var arrived atomic.Int64
	hb.frame = func(_ *Conn, f wire.Frame) {
		<-gate
		arrived.Add(int64(len(f.Payload)))
	}
	start(t, a)
	start(t, b)
	c := ha.want(t, "up").conn
	chunk := make([]byte, 256<<10)
	const total = 64 << 20
	var sent atomic.Int64
	ended := make(chan error, 1)
	go func() {
		for sent.Load() < total {
			if err := c.Send(wire.Frame{Type: wire.TypeState, Payload: chunk}); err != nil {
				ended <- err
				return
			}
			sent.Add(int64(len(chunk)))
		}
		ended <- nil
	}()
	// The sender gets stuck: what it sent stays the same while the queue is
	// full. What the kernel buffers comes on top of it.
	var last int64
	same := 0
	until(t, "the sender is stuck", func() bool {
		now := sent.Load()
		if now == last && c.Pending() >= bulkQueue {
			same++
		} else {
			same = 0
		}
		last = now
		return same > 100
	})
	if n := c.Pending(); n > bulkQueue+len(chunk)+100 {
		t.Errorf("%d bytes pending, want about %d", n, bulkQueue)
	}
	// The log isn't stuck behind the limit of pages, only in the same queue.
	logged := make(chan error, 1)
	go func() { logged <- c.SendLog(0, []byte("urgent")) }()
	select {
	case err := <-logged:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patient):
		t.Error("the log blocks")
	}
	close(gate)
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(6 * patient):
		t.Fatal("the sender is still stuck")
	}
	until(t, "everything arrives", func() bool { return arrived.Load() == total+8+6 })
}

// TestStall: a peer that takes nothing for too long is given up, and everyone
// who waits for it hears of it.
func TestStall(t *testing.T) {
	a, b, ha, hb := configs()
	a.Stall = 200 * time.Millisecond
	gate := make(chan struct{})
	hb.frame = func(*Conn, wire.Frame) { <-gate }
	start(t, a)
	_, stopB := start(t, b)
	c := ha.want(t, "up").conn
	errs := make(chan error, 2)
	go func() {
		for {
			if err := c.Send(wire.Frame{Type: wire.TypeState, Payload: make([]byte, 1<<20)}); err != nil {
				errs <- err
				return
			}
		}
	}()
	down := ha.want(t, "down")
	if !errors.Is(down.err, ErrLost) {
		t.Errorf("down: %v", down.err)
	}
	select {
	case err := <-errs:
		if !errors.Is(err, ErrLost) {
			t.Errorf("send: %v", err)
		}
	case <-time.After(patient):
		t.Error("send hangs")
	}
	if err := c.Flush(); !errors.Is(err, ErrLost) {
		t.Errorf("flush: %v", err)
	}
	close(gate)
	stopB()
}

// TestCloseDelivers: what was queued before Close arrives, then the reason.
func TestCloseDelivers(t *testing.T) {
	a, b, ha, hb := configs()
	start(t, a)
	start(t, b)
	c := ha.want(t, "up").conn
	var want []string
	for i := range 50 {
		want = append(want, strings.Repeat("x", i))
		if err := c.Send(control1(want[i])); err != nil {
			t.Fatal(err)
		}
	}
	c.Close("enough")
	c.Close("twice does no harm")
	if err := c.Send(control1("late")); err != ErrClosed {
		t.Errorf("send after close: %v", err)
	}
	var got []string
	for range want {
		got = append(got, hb.want(t, "frame").payload)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if e := hb.want(t, "down"); !errors.Is(e.err, ErrBye) || !strings.Contains(e.err.Error(), `"enough"`) {
		t.Errorf("down: %v", e.err)
	}
	if e := ha.want(t, "down"); e.err != ErrClosed {
		t.Errorf("down: %v", e.err)
	}
}

// pipe is a net.Conn that notes what is written in one call.
type pipe struct {
	net.Conn
	writes [][]byte
	limits int // writes that may take limited time
	err    error
}

func (p *pipe) Write(b []byte) (int, error) {
	p.writes = append(p.writes, bytes.Clone(b))
	return len(b), p.err
}

func (p *pipe) SetWriteDeadline(t time.Time) error {
	if time.Until(t) > 0 {
		p.limits++
	}
	return nil
}

func (p *pipe) Read([]byte) (int, error) { return 0, net.ErrClosed }

func TestBatched(t *testing.T) {
	p := &pipe{}
	b := newBatched(p, &traffic{})
	b.setStall(time.Minute)
	write := func(n int, fill byte) {
		if _, err := b.Write(bytes.Repeat([]byte{fill}, n)); err != nil {
			t.Fatal(err)
		}
	}
	write(3, 'a') // not corked: at once
	b.cork()
	write(4, 'b')
	write(5, 'c')
	if len(p.writes) != 1 {
		t.Fatalf("%d writes while corked", len(p.writes))
	}
	write(batchSize, 'd') // full: out
	write(6, 'e')
	if err := b.uncork(); err != nil {
		t.Fatal(err)
	}
	write(7, 'f')
	var sizes []int
	for _, w := range p.writes {
		sizes = append(sizes, len(w))
	}
	if want := []int{3, 9 + batchSize, 6, 7}; !slices.Equal(sizes, want) {
		t.Errorf("writes of %v, want %v", sizes, want)
	}
	if p.limits != len(sizes) {
		t.Errorf("%d of %d writes had a time limit", p.limits, len(sizes))
	}
	if string(p.writes[1][:10]) != "bbbbcccccd" {
		t.Errorf("out of order: %q", p.writes[1][:10])
	}
	p.err = errors.New("broken")
	b.cork()
	write(1, 'g')
	if err := b.uncork(); err != p.err {
		t.Errorf("uncork: %v", err)
	}
}
