package vm

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
)

// spent is processor time, of the thread that runs the guest and of the whole
// process, and time that has passed. While a guest has halted, the former don't grow:
// they compare work. The last says whether a secondary keeps up.
type spent struct{ thread, all, passed time.Duration }

func (s spent) since(before spent) spent {
	return spent{s.thread - before.thread, s.all - before.all, s.passed - before.passed}
}

// BenchmarkReplay records a boot of Debian to a Redis that serves, replays it on
// another machine, and compares what both took. Both have all of their memory
// mapped before, as a pair has behind a seeding.
func BenchmarkReplay(b *testing.B) {
	sys := kvmtest.Open(b)
	var sum [2]spent
	for b.Loop() {
		var log bytes.Buffer
		base, recorded := recordBoot(b, sys, &log)
		replayed := replayBoot(b, sys, base, log.Bytes())
		for i, s := range []spent{recorded, replayed} {
			sum[i].thread += s.thread
			sum[i].all += s.all
			sum[i].passed += s.passed
		}
	}
	for i, name := range []string{"record", "replay"} {
		b.ReportMetric(float64(sum[i].thread.Nanoseconds())/float64(b.N), name+"-ns/op")
		b.ReportMetric(float64(sum[i].all.Nanoseconds())/float64(b.N), name+"-all-ns/op")
		b.ReportMetric(float64(sum[i].passed.Nanoseconds())/float64(b.N), name+"-passed-ns/op")
	}
	b.ReportMetric(0, "ns/op")
}

func recordBoot(b *testing.B, sys *kvm.System, log *bytes.Buffer) (event.Base, spent) {
	b.Helper()
	m := bootDebian(b, sys)
	defer m.Close()
	rim := newTestRim(b)
	e := New(m, rim, benchConfig())
	rim.engine = e
	// What the kernel does to hand out memory, and KVM to map it, is no part of a
	// recording.
	if err := m.Track(); err != nil {
		b.Fatal(err)
	}
	base := m.Base()
	startLog(b, e, m, log)
	rim.openNetwork(b)
	defer rim.close()
	guest := &benchGuest{e: e}
	ctx, stop := live(b, e, rim, 10*time.Minute)
	guest.ctx = ctx
	before := guest.spent(b)
	if err := serve(ctx, rim.guest); err != nil {
		b.Fatalf("%v\nconsole:\n%s", err, rim.tail())
	}
	took := guest.spent(b).since(before)
	stop()
	if err := e.flush(time.Now(), true); err != nil {
		b.Fatal(err)
	}
	return base, took
}

// benchBegan is a moment to count from.
var benchBegan = time.Now()

func (g *benchGuest) spent(b *testing.B) spent {
	b.Helper()
	return spent{g.threadTime(b), cpuTime(b, unix.RUSAGE_SELF), time.Since(benchBegan)}
}

func replayBoot(b *testing.B, sys *kvm.System, base event.Base, log []byte) spent {
	b.Helper()
	m := bootDebian(b, sys)
	defer m.Close()
	if err := m.Track(); err != nil {
		b.Fatal(err)
	}
	e := New(m, discard{}, benchConfig())
	if err := e.Feed(0, log); err != nil {
		b.Fatal(err)
	}
	e.Consume()
	ended := make(chan time.Duration, 1)
	all, began := cpuTime(b, unix.RUSAGE_SELF), time.Now()
	go func() { // a thread of its own, which Replay locks it to
		release, err := holdThread()
		if err != nil {
			b.Error(err)
			ended <- 0
			return
		}
		defer release()
		before := cpuTime(b, unix.RUSAGE_THREAD)
		if err := e.Replay(context.Background(), base, func(_, _ uint64) {}); err != nil {
			b.Error(errors.Join(errors.New("replay"), err))
		}
		ended <- cpuTime(b, unix.RUSAGE_THREAD) - before
	}()
	thread := <-ended
	return spent{thread, cpuTime(b, unix.RUSAGE_SELF) - all, time.Since(began)}
}
