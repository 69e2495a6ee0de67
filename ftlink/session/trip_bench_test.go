package session

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/duet-ft/duet/ftlink/wire"
)

// echo acknowledges log at once, as a secondary at level received does, and
// tells what was acknowledged.
type echo struct {
	up    chan *Conn
	acked chan uint64
}

func (e *echo) Up(c *Conn)             { e.up <- c }
func (e *echo) Down(*Conn, error)      {}
func (e *echo) Heartbeat(Path, []byte) {}
func (e *echo) Trouble(error)          {}

func (e *echo) Frame(c *Conn, f wire.Frame) {
	switch f.Type {
	case wire.TypeLog:
		lsn, log, err := wire.ParseLog(f, nil)
		if err != nil {
			panic(err)
		}
		_ = c.SendAck(lsn+uint64(len(log)), 0) // an error shows as a missing answer
	case wire.TypeAck:
		received, _, err := wire.ParseAck(f)
		if err != nil {
			panic(err)
		}
		e.acked <- received
	}
}

// tripBytes is a batch of the log, as one small request makes it.
const tripBytes = 100

// BenchmarkRoundTrip is how long 100 bytes of the log take to the peer and its
// acknowledgement back, over loopback, and how many times as long as the same
// bytes take by bare TCP between two goroutines: what an effect waits at level
// received, in round trips of the link.
func BenchmarkRoundTrip(b *testing.B) {
	x, y, _, _ := configs()
	from := &echo{up: make(chan *Conn, 1), acked: make(chan uint64, 1)}
	to := &echo{up: make(chan *Conn, 1)}
	x.Handler, y.Handler = from, to
	start(b, x)
	start(b, y)
	conn := <-from.up
	<-to.up
	bare := bareTCP(b)
	batch := make([]byte, tripBytes)
	var lsn uint64
	log := func() {
		if err := conn.SendLog(lsn, batch); err != nil {
			b.Fatal(err)
		}
		if lsn += tripBytes; <-from.acked != lsn {
			b.Fatal("the wrong bytes are acknowledged")
		}
	}
	// Both by turns, so that what else the machine does slows down both.
	var trips, bares float64
	for b.Loop() {
		begun := b.Elapsed()
		log()
		middle := b.Elapsed()
		bare()
		trips += float64(middle - begun)
		bares += float64(b.Elapsed() - middle)
	}
	b.ReportMetric(trips/float64(b.N), "ns/trip")
	b.ReportMetric(trips/bares, "x-TCP")
	b.ReportMetric(0, "ns/op")
}

// bareTCP returns a function that sends a batch's bytes by TCP and waits until
// they are back.
func bareTCP(b *testing.B) func() {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	peer, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = errors.Join(conn.Close(), peer.Close(), ln.Close()) })
	go func() {
		buf := make([]byte, tripBytes)
		for {
			if _, err := io.ReadFull(peer, buf); err != nil {
				return // at the benchmark's end
			}
			if _, err := peer.Write(buf); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, tripBytes)
	return func() {
		if _, err := conn.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			b.Fatal(err)
		}
	}
}
