package blk

import (
	"math/rand/v2"
	"testing"

	"github.com/duet-ft/duet/hvd/virtio"
)

// add makes a flush available as a driver does, which notifies if the device asks
// for that, and says whether it did.
func (f *fixture) add() (notified bool) {
	f.t.Helper()
	_, notified = f.ring.Add([]virtio.Segment{f.header(dataAt, OpFlush, 0)}, []virtio.Segment{{Addr: dataAt + 0xfff, Len: 1}})
	if notified {
		f.notify()
		f.d.Transport.Look(virtio.AtExit)
	}
	return notified
}

// done completes all requests.
func (f *fixture) done() {
	f.t.Helper()
	for _, r := range f.d.Pending() {
		if err := f.d.Complete(r.ID, StatusOK, nil); err != nil {
			f.t.Fatal(err)
		}
	}
	f.ring.Used()
	f.out = nil
}

// pause adds a request, makes other exits and pauses at last; it says whether the
// driver notified. The device must have taken the request.
func (f *fixture) pause(others int, at virtio.Pause) (notified bool) {
	f.t.Helper()
	notified = f.add()
	if before := len(f.out); notified != (before == 1) {
		f.t.Fatalf("notified %t, and %d requests came out", notified, before)
	}
	for range others {
		f.d.Transport.Look(virtio.AtExit)
	}
	f.d.Transport.Look(at)
	if len(f.out) != 1 {
		f.t.Fatalf("%d requests came out, should be one", len(f.out))
	}
	f.done()
	return notified
}

// quiet makes requests with a HLT behind each until the driver doesn't notify any
// more, and returns how many notifications that took.
func (f *fixture) quiet() (notified int) {
	f.t.Helper()
	for f.pause(0, virtio.AtHalt) {
		if notified++; notified > 2000 {
			f.t.Fatal("the queue never gets quiet")
		}
	}
	return notified
}

func TestQuietAfterHalts(t *testing.T) {
	f := start(t, Config{Sectors: 100})
	if n := f.quiet(); n != 4 {
		t.Errorf("quiet after %d notifications", n)
	}
	for range 1000 {
		if f.pause(0, virtio.AtHalt) {
			t.Fatal("notified while each request is followed by a HLT")
		}
	}
	// Several before one HLT come all at once.
	for range 5 {
		if f.add() {
			t.Error("notified")
		}
	}
	if len(f.out) != 0 {
		t.Errorf("%d requests came out before any exit", len(f.out))
	}
	f.d.Transport.Look(virtio.AtHalt)
	if len(f.out) != 5 {
		t.Errorf("%d requests came out at HLT, should be 5", len(f.out))
	}
}

// TestLoudWithoutHalts: a guest that goes on after a request notifies for ever, and
// so does one that makes many exits before its HLT.
func TestLoudWithoutHalts(t *testing.T) {
	f := start(t, Config{Sectors: 100})
	for range 100 {
		if !f.pause(1, virtio.AtExit) {
			t.Fatal("not notified, though no HLT follows")
		}
	}
	for range 100 {
		if !f.pause(10, virtio.AtHalt) {
			t.Fatal("not notified, though HLT is far away")
		}
	}
}

// TestLoudAgain: a guest that doesn't halt any more notifies again soon, and has to
// halt for longer the next time.
func TestLoudAgain(t *testing.T) {
	f := start(t, Config{Sectors: 100})
	need := 4
	for range 12 {
		if n := f.quiet(); n != need {
			t.Errorf("quiet after %d notifications, should be %d", n, need)
		}
		late := 0
		for !f.pause(0, virtio.AtTick) {
			late++
		}
		if late != 4 {
			t.Errorf("%d requests were late", late)
		}
		need = min(2*max(need-1, 4), 1024) // the last one without a notification was in time
	}
	// A late one among many in time changes nothing.
	f.quiet()
	for range 50 {
		if f.pause(0, virtio.AtTime) {
			t.Fatal("notified")
		}
		for range 4 {
			if f.pause(0, virtio.AtHalt) {
				t.Fatal("notified")
			}
		}
	}
}

// TestQuietTakesAll: whatever the guest does, no request waits beyond a pause, a
// full disk's excepted, and none is lost.
func TestQuietTakesAll(t *testing.T) {
	for seed := range uint64(200) {
		f := start(t, Config{Sectors: 100})
		r := rand.New(rand.NewPCG(seed, 1))
		halts := r.IntN(10)
		added := uint64(0)
		for range 2000 {
			switch k := r.IntN(10); {
			case k < 5:
				if f.ring.Free() >= 2 {
					f.add()
					added++
				}
			case k < 6:
				f.done()
			case r.IntN(10) < halts:
				f.d.Transport.Look(virtio.AtHalt)
			default:
				f.d.Transport.Look(virtio.Pause(r.IntN(4)))
			}
			if r.IntN(10) > 0 {
				continue
			}
			f.d.Transport.Look(virtio.AtTime)
			if n := f.d.Transport.Available(0); n > 0 && f.d.room() {
				t.Fatalf("seed %d: %d requests wait", seed, n)
			}
			if err := f.d.Validate(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		f.d.Transport.Look(virtio.AtExit)
		if f.d.NextID != added {
			t.Errorf("seed %d: %d requests made, %d came out", seed, added, f.d.NextID)
		}
	}
}

// TestQuietFull: a disk that has no room for more is notified again, and what waits
// is taken when there is room.
func TestQuietFull(t *testing.T) {
	f := start(t, Config{Sectors: 1 << 20})
	f.quiet()
	big := func(i int) {
		at := uint64(dataAt + i*0x10000)
		head := []virtio.Segment{f.header(at, OpRead, 0)}
		seg := virtio.Segment{Addr: dataAt, Len: 31 * sizeMax}
		_, notified := f.ring.Add(head, []virtio.Segment{seg, seg, seg, seg, {Addr: at + 0xfff, Len: 1}})
		if notified {
			t.Error("notified")
		}
	}
	for i := range 6 {
		big(i)
	}
	f.d.Transport.Look(virtio.AtHalt)
	if len(f.out) != 5 || f.d.room() || f.d.Transport.Available(0) != 1 {
		t.Fatalf("%d requests came out, room %t, %d wait", len(f.out), f.d.room(), f.d.Transport.Available(0))
	}
	f.d.Transport.Look(virtio.AtExit)
	if len(f.d.Transport.Unheard(nil)) != 0 {
		t.Error("a full disk's queue is to be looked at while the guest runs")
	}
	if err := f.d.Complete(f.out[0].ID, StatusIOError, nil); err != nil {
		t.Fatal(err)
	}
	if len(f.out) != 6 {
		t.Errorf("%d requests came out, should be 6", len(f.out))
	}
	if !f.add() {
		t.Error("not notified")
	}
}

// TestQuietIgnoresTraps: exits that the guest doesn't know of change nothing, and
// what is found at them isn't late.
func TestQuietIgnoresTraps(t *testing.T) {
	f := start(t, Config{Sectors: 100})
	for range 4 {
		if !f.add() {
			t.Fatal("not notified")
		}
		for range 20 {
			f.d.Transport.Look(virtio.AtTrap)
			f.d.Transport.Look(virtio.AtTime)
		}
		f.d.Transport.Look(virtio.AtHalt)
		f.done()
	}
	for range 100 {
		if f.pause(0, virtio.AtTrap) {
			t.Fatal("notified")
		}
	}
	f = start(t, Config{Sectors: 100})
	for range 20 { // a tick on the way
		if !f.add() {
			t.Fatal("not notified")
		}
		f.d.Transport.Look(virtio.AtTick)
		f.d.Transport.Look(virtio.AtHalt)
		f.done()
	}
}
