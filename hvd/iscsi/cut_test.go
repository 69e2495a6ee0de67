package iscsi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// cutWork is a workload of a few dozen PDUs on a region of the unit: writers that
// overwrite their blocks again and again, each write when the one before it is
// acknowledged, small and large ones, with reads, flushes, WRITE SAME and, where
// the target has it, COMPARE AND WRITE.
type cutWork struct {
	base  uint64 // first block
	swaps bool
}

const (
	cutWriters = 3
	cutBlocks  = 300 // of 512 bytes, of each writer
	cutRounds  = 3
)

// run does the work by s and returns what has to be on the blocks afterwards. All
// of it was acknowledged.
func (w cutWork) run(ctx context.Context, s *Session, seed byte) ([]byte, error) {
	want := make([]byte, (cutWriters*cutBlocks+1)*512)
	errs := make(chan error, cutWriters+1)
	for i := range cutWriters {
		at := i * cutBlocks * 512
		go func() { errs <- w.write(ctx, s, i, want[at:][:cutBlocks*512], seed) }()
	}
	go func() { errs <- w.swap(ctx, s, want[cutWriters*cutBlocks*512:], seed) }()
	var err error
	for range cutWriters + 1 {
		err = errors.Join(err, <-errs)
	}
	return want, err
}

func (w cutWork) write(ctx context.Context, s *Session, i int, model []byte, seed byte) error {
	lba := w.base + uint64(i)*cutBlocks
	for round := range cutRounds {
		fillRandom(model, uint64(seed)<<16|uint64(i)<<8|uint64(round))
		small := model[:8*512]
		if err := s.Write(ctx, lba, model); err != nil {
			return err
		}
		fillRandom(small, uint64(seed)<<16|uint64(i)<<8|uint64(round)|128)
		if err := s.Write(ctx, lba, small); err != nil {
			return err
		}
		got := make([]byte, len(small))
		if err := s.Read(ctx, lba, got); err != nil {
			return err
		}
		if !bytes.Equal(got, small) {
			return fmt.Errorf("writer %d, round %d: another thing was read than was written", i, round)
		}
	}
	clear(model[100*512:][:50*512])
	if err := s.Zero(ctx, lba+100, 50); err != nil {
		return err
	}
	return s.Sync(ctx)
}

// swap counts up by COMPARE AND WRITE; after an unknown outcome it looks, as the
// arbiter does.
func (w cutWork) swap(ctx context.Context, s *Session, block []byte, seed byte) error {
	lba := w.base + cutWriters*cutBlocks
	if err := s.Write(ctx, lba, block); err != nil || !w.swaps {
		return err
	}
	for i := range byte(4) {
		next := bytes.Repeat([]byte{seed, i + 1}, 256)
		for {
			swapped, err := s.CompareAndWrite(ctx, lba, block, next)
			if err == nil && !swapped {
				return errors.New("a lone COMPARE AND WRITE lost")
			}
			if err == nil {
				break
			}
			if !errors.Is(err, ErrUnknownOutcome) {
				return err
			}
			got := make([]byte, 512)
			if err := s.Read(ctx, lba, got); err != nil {
				return err
			}
			if bytes.Equal(got, next) {
				break
			}
			if !bytes.Equal(got, block) {
				return errors.New("COMPARE AND WRITE left a third value")
			}
		}
		copy(block, next)
	}
	return nil
}

// cutAt runs the work once, with the connection cut after the n-th PDU (0: not at
// all), and looks at the blocks by a session of its own. It returns how many PDUs
// went by.
func cutAt(t *testing.T, cfg Config, look *Session, w cutWork, n int) int {
	t.Helper()
	r := newRelay(t, cfg.Portal)
	r.digests = cfg.HeaderDigest
	var done atomic.Bool
	r.meddle = func(k int, _, _ bool, pdu []byte) ([]byte, bool) {
		return pdu, k == n && done.CompareAndSwap(false, true)
	}
	cfg.Portal = r.ln.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// A first login is tried once, and what was left of one that was cut may end the
	// next one when it arrives late.
	s, err := Dial(ctx, cfg)
	for try := 0; err != nil && n > 0 && try < 3; try++ {
		s, err = Dial(ctx, cfg)
	}
	if err != nil {
		t.Fatalf("cut at PDU %d: %v", n, err)
	}
	want, err := w.run(ctx, s, byte(n))
	if err != nil {
		t.Fatalf("cut at PDU %d: %v", n, err)
	}
	pdus := int(r.count.Load())
	got := make([]byte, len(want))
	for range 2 { // nothing may come late
		if err := look.Read(ctx, w.base, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("cut at PDU %d: byte %d isn't what was acknowledged", n, firstDifference(got, want))
		}
		s.Close()
	}
	r.ln.Close()
	return pdus
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// cutEverywhere cuts at every PDU of the work, with as many runs at a time as
// there are configurations, each on blocks of its own.
func cutEverywhere(t *testing.T, cfgs []Config, swaps bool) {
	t.Helper()
	next := make(chan int)
	var workers sync.WaitGroup
	for i, cfg := range cfgs {
		cfg.MaxOffline = 30 * time.Second
		own := cfg
		cfg.Initiator = fmt.Sprintf("%s-look-%d", cfg.Initiator, i)
		look := dialTest(t, cfg)
		own.Initiator = fmt.Sprintf("%s-%d", own.Initiator, i)
		workers.Go(func() {
			for n := range next {
				if !t.Failed() {
					cutAt(t, own, look, cutWork{base: uint64(i) * 1024, swaps: swaps}, n)
				}
			}
		})
		if i == 0 {
			// Runs differ by some PDUs, as commands meet.
			all := cutAt(t, own, look, cutWork{swaps: swaps}, 0) + 5
			t.Logf("the connection is cut at each of %d PDUs", all)
			go func() {
				defer close(next)
				for n := 1; n <= all; n++ {
					next <- n
				}
			}()
		}
	}
	workers.Wait()
}

// TestCutEverywhere: whenever the connection is cut, the session goes on, and the
// blocks are what was acknowledged.
func TestCutEverywhere(t *testing.T) {
	t.Parallel()
	for _, immediate := range []int{64 << 10, 0} {
		t.Run(fmt.Sprintf("immediate=%d", immediate), func(t *testing.T) {
			f := newFake(t)
			f.disk = make([]byte, 16<<20)
			f.immediate, f.maxBurst = immediate, 64<<10
			cutEverywhere(t, []Config{f.config(), f.config(), f.config(), f.config()}, true)
		})
	}
}

// TestDamage: whatever happens to the bytes on the way, digests find it, and the
// data are right in the end.
func TestDamage(t *testing.T) {
	t.Parallel()
	const seeds = 24
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			damageOnTheWay(t, seed)
		})
	}
}

func damageOnTheWay(t *testing.T, seed uint64) {
	f := newFake(t)
	f.digests, f.damage = true, true
	look := dialTest(t, f.config())
	cfg := f.config()
	cfg.InsistOnDigests = true
	cfg.Timeout = 500 * time.Millisecond
	r := newRelay(t, cfg.Portal)
	r.digests = true
	var mu sync.Mutex
	rnd, left := rand.New(rand.NewPCG(seed, 1)), 6
	r.meddle = func(_ int, _, login bool, pdu []byte) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		if login || left == 0 || rnd.IntN(12) > 0 {
			return pdu, false
		}
		left--
		switch at := rnd.IntN(len(pdu)); rnd.IntN(4) {
		case 0:
			pdu[at] ^= 1 << rnd.IntN(8)
		case 1:
			return pdu[:at], true
		case 2:
			return append(pdu, pdu...), false
		default:
			return nil, false
		}
		return pdu, false
	}
	cfg.Portal = r.ln.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Dial(ctx, cfg)
	for ; err != nil && ctx.Err() == nil; s, err = Dial(ctx, cfg) {
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := cutWork{swaps: true}
	want, err := w.run(ctx, s, byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	mustDo(t, "read", look.Read(ctx, 0, got))
	if !bytes.Equal(got, want) {
		t.Fatalf("byte %d is wrong", firstDifference(got, want))
	}
	if left == 6 {
		t.Error("nothing was damaged")
	}
}
