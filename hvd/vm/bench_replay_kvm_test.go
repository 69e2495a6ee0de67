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

// spent is processor time: of the thread that runs the guest, and of the whole
// process. While a guest has halted, neither grows, so what is compared is work.
type spent struct{ thread, all time.Duration }

// BenchmarkReplay records a boot of Debian to a Redis that serves, replays it on
// another machine, and compares what both took.
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
		}
	}
	for i, name := range []string{"record", "replay"} {
		b.ReportMetric(float64(sum[i].thread.Nanoseconds())/float64(b.N), name+"-ns/op")
		b.ReportMetric(float64(sum[i].all.Nanoseconds())/float64(b.N), name+"-all-ns/op")
	}
	b.ReportMetric(float64(sum[1].thread)/float64(sum[0].thread), "replay/record")
	b.ReportMetric(0, "ns/op")
}

func recordBoot(b *testing.B, sys *kvm.System, log *bytes.Buffer) (event.Base, spent) {
	b.Helper()
	m := bootDebian(b, sys)
	defer m.Close()
	rim := newTestRim(b)
	e := New(m, rim, benchConfig())
	rim.engine = e
	// As behind a seeding, and as Track does it for the replica: what the kernel does
	// to hand out memory is no part of a recording.
	if err := m.Memory.Populate(); err != nil {
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
	after := guest.spent(b)
	stop()
	if err := e.flush(time.Now(), true); err != nil {
		b.Fatal(err)
	}
	return base, spent{after.thread - before.thread, after.all - before.all}
}

func (g *benchGuest) spent(b *testing.B) spent {
	b.Helper()
	return spent{g.threadTime(b), cpuTime(b, unix.RUSAGE_SELF)}
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
	ended := make(chan spent, 1)
	all := cpuTime(b, unix.RUSAGE_SELF)
	go func() { // a thread of its own, which Replay locks it to
		release, err := holdThread()
		if err != nil {
			b.Error(err)
			return
		}
		defer release()
		before := cpuTime(b, unix.RUSAGE_THREAD)
		if err := e.Replay(context.Background(), base, func(_, _ uint64) {}); err != nil {
			b.Error(errors.Join(errors.New("replay"), err))
		}
		ended <- spent{thread: cpuTime(b, unix.RUSAGE_THREAD) - before}
	}()
	s := <-ended
	s.all = cpuTime(b, unix.RUSAGE_SELF) - all
	return s
}
