package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
)

// BenchmarkGuest measures what a guest's work costs its host, alone and
// recorded, in one run on one guest: CPU time, exits and log for a Redis SET
// that is synced to the disk, and for a tick of an idle guest. The log's reader
// acknowledges at once, so the link isn't in it.
func BenchmarkGuest(b *testing.B) {
	sys := duetKVM(b)
	m := bootDebian(b, sys)
	defer m.Close()
	rim := newTestRim(b)
	e := New(m, rim, tcgConfig())
	rim.engine = e
	rim.openNetwork(b)
	defer rim.close()
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- e.Live(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			b.Errorf("the guest ended: %v\nconsole:\n%s", err, rim.tail())
		}
	}()
	if err := serve(ctx, rim.guest); err != nil {
		b.Fatal(err)
	}
	conn, err := net.Dial("tcp", rim.guest+":6379")
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := newRedis(conn)
	measure := func(b *testing.B) {
		b.Run("request", func(b *testing.B) {
			tally(b, e, func() {
				if got, err := client.do("SET", "bench", fmt.Sprint(b.N)); err != nil || got != "OK" {
					b.Fatalf("SET: %q, %v", got, err)
				}
			})
		})
		b.Run("idle-tick", func(b *testing.B) {
			ticks := time.NewTicker(4 * time.Millisecond)
			defer ticks.Stop()
			tally(b, e, func() { <-ticks.C })
		})
	}
	b.Run("alone", measure)
	err = e.Do(ctx, func(m *machine.Machine) error {
		if err := m.LogDirty(true); err != nil {
			return err
		}
		if err := e.Record(func(lsn uint64, batch []byte) {
			if err := e.Ack(lsn+uint64(len(batch)), lsn+uint64(len(batch))); err != nil {
				b.Error(err)
			}
		}); err != nil {
			return err
		}
		_, err := e.Gate(lockstep.Acked)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("recorded", measure)
}

// tally runs f and reports what the host did meanwhile, for each call.
func tally(b *testing.B, e *Engine, f func()) {
	cpu, exits, log, resync := cpuTime(b), e.Stats.Exits.Load(), e.Stats.LogBytes.Load(), e.Stats.ResyncBytes.Load()
	n := 0.0
	for b.Loop() {
		f()
		n++
	}
	resync = e.Stats.ResyncBytes.Load() - resync
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/n, "cpu-us/op")
	b.ReportMetric(float64(e.Stats.Exits.Load()-exits)/n, "exits/op")
	b.ReportMetric(float64(e.Stats.LogBytes.Load()-log-resync)/n, "log-B/op")
	b.ReportMetric(float64(resync)/n, "resync-B/op")
}

// cpuTime is what this process has used, its guest included.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
