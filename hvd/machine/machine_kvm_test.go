package machine

import (
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// newTiny makes a machine that stands at the first byte of code, in 64-bit
// mode with 1 GiB mapped one to one. It skips where there is no Duet kernel.
func newTiny(tb testing.TB, code []byte) *Machine {
	tb.Helper()
	sys := kvmtest.Open(tb)
	m, err := New(sys, Config{
		MemoryBytes: 32 << 20,
		Board:       board.Config{MAC: [6]byte{2}, CID: 3, Wall: time.Unix(0, 0)},
		Traps:       kvm.FlagCR3 | kvm.FlagPF,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	if err := m.Boot(kvmtest.Flat(tb, m.Memory, kvmtest.Text, code)); err != nil {
		tb.Fatal(err)
	}
	return m
}

// outLoop writes to port 80h for ever: mov dx,0x80; out dx,al; jmp.
var outLoop = []byte{0x66, 0xba, 0x80, 0x00, 0xee, 0xeb, 0xfd}

// BenchmarkExit is a round trip out of the guest and back: what KVM takes of
// it, and with the machine around it.
func BenchmarkExit(b *testing.B) {
	b.Run("kvm", func(b *testing.B) {
		m := newTiny(b, outLoop)
		for b.Loop() {
			if err := m.cpu.Enter(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("machine", func(b *testing.B) {
		m := newTiny(b, outLoop)
		for b.Loop() {
			if _, err := m.Run(lockstep.Free); err != nil {
				b.Fatal(err)
			}
			m.TakeEffects()
		}
	})
}

// BenchmarkHarvest is what taking the dirty log costs when nothing was
// written.
func BenchmarkHarvest(b *testing.B) {
	m := newTiny(b, outLoop)
	if err := m.LogDirty(true); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := m.collect(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClock is what the loop around a machine pays each time it looks at
// the host's clock.
func BenchmarkClock(b *testing.B) {
	for b.Loop() {
		_ = time.Now()
	}
}
