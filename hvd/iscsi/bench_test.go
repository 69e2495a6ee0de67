package iscsi

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/duet-ft/duet/image/target"
)

// BenchmarkTarget measures istgt and initiator together, on this machine.
func BenchmarkTarget(b *testing.B) {
	tg, err := target.Start(b.Context(), target.Config{Dir: b.TempDir(), Size: 64 << 20})
	if err != nil {
		b.Skip(err)
	}
	defer tg.Stop()
	s, err := Dial(b.Context(), testConfig(tg, "bench"))
	if err != nil {
		tg.Log(os.Stderr)
		b.Fatal(err)
	}
	defer s.Close()
	for _, depth := range []int{1, 32} {
		for _, n := range []int{4096, 65536} {
			for name, f := range map[string]func(lba uint64, p []byte) error{
				"read":  func(lba uint64, p []byte) error { return s.Read(b.Context(), lba, p) },
				"write": func(lba uint64, p []byte) error { return s.Write(b.Context(), lba, p) },
			} {
				b.Run(fmt.Sprintf("%s/%d/depth=%d", name, n, depth), func(b *testing.B) {
					b.SetBytes(int64(n))
					var wg sync.WaitGroup
					for w := range depth {
						wg.Go(func() {
							p := make([]byte, n)
							for i := w; i < b.N; i += depth {
								if err := f(uint64(i%256)*uint64(n/512), p); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
				})
			}
		}
	}
	b.Run("sync", func(b *testing.B) {
		for range b.N {
			if err := s.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("compare-and-write", func(b *testing.B) {
		p := make([]byte, 512)
		if err := s.Write(b.Context(), 0, p); err != nil {
			b.Fatal(err)
		}
		for range b.N {
			if ok, err := s.CompareAndWrite(b.Context(), 0, p, p); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
}
