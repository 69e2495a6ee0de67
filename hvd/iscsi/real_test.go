package iscsi

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/target"
)

const testSecret = "correct-horse-1"

// startTarget runs istgt, or skips the test when it isn't installed.
func startTarget(t *testing.T, cfg target.Config) *target.Target {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Size == 0 {
		cfg.Size = 64 << 20
	}
	tg, err := target.Start(t.Context(), cfg)
	if errors.Is(err, target.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tg.Stop()
		if t.Failed() {
			tg.Log(os.Stderr)
		}
	})
	return tg
}

func testConfig(tg *target.Target, name string) Config {
	return Config{
		Portal: tg.Portal(), Target: tg.IQN(), LUN: uint64(tg.LUN()), Initiator: "iqn.2024-01.org.duet-ft:" + name,
		Timeout: 5 * time.Second, MaxOffline: 20 * time.Second,
	}
}

func dialTest(t *testing.T, cfg Config) *Session {
	t.Helper()
	s, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fillRandom(p []byte, seed uint64) {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	r.Read(p)
}

// TestReadWriteRandom compares the volume with a model in memory, under
// concurrent random requests of all sizes.
func TestReadWriteRandom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		digests   bool
		blockSize int
	}{{"plain", false, 512}, {"digests", true, 512}, {"4096", true, 4096}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			tg := startTarget(t, target.Config{BlockSize: c.blockSize})
			cfg := testConfig(tg, "host-a")
			cfg.HeaderDigest, cfg.DataDigest = c.digests, c.digests
			s := dialTest(t, cfg)
			if p := s.cur.p; p.headerDigest != c.digests || p.dataDigest != c.digests {
				t.Fatalf("digests: got %v/%v, asked for %v", p.headerDigest, p.dataDigest, c.digests)
			}
			blocks, bs := s.Capacity()
			if bs != c.blockSize || blocks*uint64(bs) != 64<<20 {
				t.Fatalf("capacity %d x %d", blocks, bs)
			}
			const workers, region = 8, 4 << 20
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() { hammer(t, s, uint64(w)*region/uint64(bs), region, uint64(w)) })
			}
			wg.Wait()
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// hammer reads and writes region bytes from block base on, and checks them
// against a copy.
func hammer(t *testing.T, s *Session, base uint64, region int, seed uint64) {
	_, bs := s.Capacity()
	r := rand.New(rand.NewPCG(seed, 7))
	model := make([]byte, region)
	if err := s.Write(t.Context(), base, model); err != nil {
		t.Error(err)
		return
	}
	for i := range 60 {
		n := (1 + r.IntN(1+r.IntN(region/bs/2))) * bs
		at := r.IntN((region-n)/bs+1) * bs
		lba := base + uint64(at/bs)
		if i%2 == 0 {
			fillRandom(model[at:at+n], seed<<16|uint64(i))
			if err := s.Write(t.Context(), lba, model[at:at+n]); err != nil {
				t.Error(err)
				return
			}
			continue
		}
		got := make([]byte, n)
		if err := s.Read(t.Context(), lba, got); err != nil {
			t.Error(err)
			return
		}
		if !bytes.Equal(got, model[at:at+n]) {
			t.Errorf("blocks from %d on, %d bytes: not what was written", lba, n)
			return
		}
	}
}

func TestLoginErrors(t *testing.T) {
	t.Parallel()
	tg := startTarget(t, target.Config{User: "duet", Secret: testSecret})
	good := testConfig(tg, "host-a")
	good.User, good.Secret = "duet", testSecret
	dialTest(t, good)
	good.ISID = [6]byte{0x80, 0, 0, 0, 0, 1} // or the good session would be thrown out
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
		is     error
	}{
		{"wrong secret", func(c *Config) { c.Secret = "battery-staple" }, "wrong CHAP user or password", ErrAuth},
		{"wrong user", func(c *Config) { c.User = "nobody" }, "wrong CHAP user or password", ErrAuth},
		{"no user", func(c *Config) { c.User = "" }, "target wants a CHAP user and password, and none is given", nil},
		{"wrong target", func(c *Config) { c.Target += "x" }, "no such target there", nil},
		{"wrong port", func(c *Config) { c.Portal = "127.0.0.1:1" }, "connection refused", nil},
		{"wrong LUN", func(c *Config) { c.LUN = 7 }, "no such logical unit", nil},
		{"no port", func(c *Config) { c.Portal = "127.0.0.1" }, "expected host:port", nil},
		{"name with =", func(c *Config) { c.Target = "iqn=x" }, "holds '='", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good
			c.change(&cfg)
			s, err := Dial(t.Context(), cfg)
			if err == nil {
				s.Close()
				t.Fatal("got in")
			}
			t.Log(err)
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line with %q", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
		})
	}
}

func TestCompareAndWriteLimits(t *testing.T) {
	t.Parallel()
	tg := startTarget(t, target.Config{})
	s := dialTest(t, testConfig(tg, "host-a"))
	old, fresh := make([]byte, 255*512), make([]byte, 255*512)
	fillRandom(fresh, 3)
	if ok, err := s.CompareAndWrite(t.Context(), 8, old, fresh); !ok || err != nil {
		t.Fatalf("255 blocks: %v %v", ok, err)
	}
	if ok, err := s.CompareAndWrite(t.Context(), 8, old, fresh); ok || err != nil {
		t.Fatalf("255 blocks again: %v %v", ok, err)
	}
	blocks, _ := s.Capacity()
	for _, bad := range []func() error{
		func() error { _, err := s.CompareAndWrite(t.Context(), blocks, old[:512], fresh[:512]); return err },
		func() error { return s.Write(t.Context(), blocks-1, old[:1024]) },
		func() error { return s.Read(t.Context(), ^uint64(0), old[:512]) },
	} {
		if err := bad(); !errors.Is(err, ErrRange) {
			t.Errorf("outside of the volume: %v", err)
		}
	}
	if err := s.Write(t.Context(), 0, old[:100]); err == nil {
		t.Error("100 bytes were written")
	}
}

// waitFor waits for a condition, up to a minute.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	end := time.After(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-end:
			t.Fatal("waited a minute in vain")
		case <-tick.C:
		}
	}
}
