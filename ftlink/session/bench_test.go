package session

import (
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/ftlink/wire"
)

// sink takes the log and says when so many bytes are there.
type sink struct {
	up   chan *Conn
	want chan uint64
	got  chan struct{}
	left uint64
}

func (s *sink) Up(c *Conn)             { s.up <- c }
func (s *sink) Down(*Conn, error)      {}
func (s *sink) Heartbeat(Path, []byte) {}
func (s *sink) Trouble(error)          {}

func (s *sink) Frame(_ *Conn, f wire.Frame) {
	if s.left == 0 {
		s.left = <-s.want
	}
	_, log, err := wire.ParseLog(f, nil)
	if err != nil {
		panic(err)
	}
	if s.left -= uint64(len(log)); s.left == 0 {
		s.got <- struct{}{}
	}
}

// BenchmarkLog is the processor time that the link takes for each megabyte of
// the log, at both ends together and with the kernel's share: frames and their
// compression, TLS, TCP over loopback; and how many times as long as copying the
// same bytes that is. Batches of 100 bytes are those of a guest that serves small
// requests one by one.
func BenchmarkLog(b *testing.B) {
	x, y, _, _ := configs()
	to := &sink{up: make(chan *Conn, 1), want: make(chan uint64, 1), got: make(chan struct{}, 1)}
	from := &sink{up: make(chan *Conn, 1)}
	x.Handler, y.Handler = from, to
	start(b, x)
	start(b, y)
	conn := <-from.up
	<-to.up
	for _, c := range []struct {
		name    string
		size, n int
		noise   bool
	}{
		{"batches-100", 100, 100, false},
		{"batches-64K", 64 << 10, 16, false},
		{"batches-64K-noise", 64 << 10, 16, true},
	} {
		batch := make([]byte, c.size)
		for i := range batch {
			if c.noise || i%8 == 0 {
				batch[i] = byte(rand.Uint32())
			}
		}
		b.Run(c.name, func(b *testing.B) {
			perMB(b, batch, c.n, func() {
				to.want <- uint64(c.size * c.n)
				for i := range c.n {
					if err := conn.SendLog(uint64(i*c.size), batch); err != nil {
						b.Fatal(err)
					}
					if c.size < wire.PageSize {
						if err := conn.Flush(); err != nil {
							b.Fatal(err)
						}
					}
				}
				<-to.got
			})
		})
	}
}

// perMB reports the processor time of f, which handles n batches.
func perMB(b *testing.B, batch []byte, n int, f func()) {
	before, bytes := processorTime(b), 0.0
	for b.Loop() {
		f()
		bytes += float64(n * len(batch))
	}
	each := float64((processorTime(b) - before).Nanoseconds()) / bytes
	b.ReportMetric(each*1e6, "cpu-ns/MB")
	b.ReportMetric(each/copyTime(batch), "x-copy")
}

// copyTime is how long copying takes, in ns a byte: the best of some tries.
func copyTime(batch []byte) float64 {
	const copies = 100
	to, best := make([]byte, len(batch)), time.Hour
	for range 100 {
		begun := time.Now()
		for range copies {
			copy(to, batch)
		}
		best = min(best, time.Since(begun))
	}
	return float64(best.Nanoseconds()) / copies / float64(len(batch))
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
