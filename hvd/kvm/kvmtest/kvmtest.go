// Package kvmtest is for tests of what runs guests.
//
// # Place
//
// The tests of hvd/{locate,machine,playback,torture,vm} use it, in the host that
// image/boottest builds around them. It imports hvd/{boot,kvm,mem}.
package kvmtest

import (
	"testing"

	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
)

// Open opens the host's KVM until the test ends. It skips the test where that isn't
// the KVM of Duet's kernel.
func Open(tb testing.TB) *kvm.System {
	tb.Helper()
	sys, err := kvm.Open()
	if err != nil {
		tb.Skip("needs a host with Duet's kernel (image/boottest runs this test in one): ", err)
	}
	tb.Cleanup(func() { sys.Close() })
	if sys.Supported()&kvm.FlagTSC == 0 {
		tb.Skip("needs a host with Duet's kernel (image/boottest runs this test in one)")
	}
	return sys
}

// Text is where a test's guest may put its code: above what Flat uses.
const Text = 0x100000

// Flat puts code at a physical address, and is how a machine begins there: in
// 64-bit mode, with 1 GiB mapped one to one and a stack below 8000h. Its tables lie at
// 500h and from 9000h to below c000h.
func Flat(tb testing.TB, m *mem.Memory, at uint64, code []byte) *boot.Entry {
	tb.Helper()
	const pml4, pdpt, pd, gdt = 0x9000, 0xa000, 0xb000, 0x500
	put := func(addr, v uint64) {
		if err := m.PutUint64(addr, v); err != nil {
			tb.Fatal(err)
		}
	}
	put(pml4, pdpt|3)
	put(pdpt, pd|3)
	for i := range uint64(512) {
		put(pd+8*i, i<<21|0x83)
	}
	put(gdt+16, 0x00af9a000000ffff)
	put(gdt+24, 0x00cf92000000ffff)
	if err := m.Write(at, code); err != nil {
		tb.Fatal(err)
	}
	return &boot.Entry{RIP: at, RSP: 0x8000, CR3: pml4, GDTBase: gdt, GDTLimit: 31}
}
