package machine

import (
	"encoding/binary"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/lockstep"
)

// faults stores its flags, raises an invalid opcode and a page fault, whose
// handlers store the flags that they interrupted, reads the time-stamp, loads CR3,
// makes an exit, and begins again.
var faults = []byte{
	// lidt [idtr]
	0x0f, 0x01, 0x1c, 0x25, 0x5e, 0x00, 0x10, 0x00,
	// 1: pushf; pop rax; mov [200000h], rax
	0x9c, 0x58, 0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00,
	// ud2
	0x0f, 0x0b,
	// mov rax, [40000000h]: not mapped
	0x48, 0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40,
	// rdtsc; mov [200018h], eax
	0x0f, 0x31, 0x89, 0x04, 0x25, 0x18, 0x00, 0x20, 0x00,
	// mov rax, cr3; mov cr3, rax
	0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8,
	// mov dx, 80h; out dx, al; jmp 1b
	0x66, 0xba, 0x80, 0x00, 0xee, 0xeb, 0xd6,
	// ud: mov rax, [rsp+16]; mov [200008h], rax; add qword [rsp], 2; iretq
	0x48, 0x8b, 0x44, 0x24, 0x10, 0x48, 0x89, 0x04, 0x25, 0x08, 0x00, 0x20, 0x00, 0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf,
	// pf: mov rax, [rsp+24]; mov [200010h], rax; add rsp, 8; add qword [rsp], 8; iretq
	0x48, 0x8b, 0x44, 0x24, 0x18, 0x48, 0x89, 0x04, 0x25, 0x10, 0x00, 0x20, 0x00, 0x48, 0x83, 0xc4, 0x08, 0x48, 0x83, 0x04, 0x24, 0x08, 0x48, 0xcf,
	// idtr: limit fffh, base c000h
	0xff, 0x0f, 0x00, 0xc0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
}

const (
	faultsUD   = 0x100032
	faultsPF   = 0x100046
	faultsOut  = 0x10002f
	faultsLoop = 23 // instructions, an exception's delivery and the end of OUT counted as one each
)

// newFaults makes a machine that runs faults, with an IDT for it.
func newFaults(tb testing.TB) *Machine {
	tb.Helper()
	m := newTiny(tb, faults)
	gate := func(vector, handler uint64) {
		at := 0xc000 + 16*vector
		if err := m.Memory.PutUint64(at, handler&0xffff|0x10<<16|0x8e<<40|handler>>16<<48); err != nil {
			tb.Fatal(err)
		}
	}
	gate(6, faultsUD)
	gate(14, faultsPF)
	return m
}

// TestStepLeavesNoTrace: executed by single steps, or with breakpoints, a guest
// gets to the same state as at full speed.
func TestStepLeavesNoTrace(t *testing.T) {
	const exits = 5
	type end struct{ fingerprint, memory, traps uint64 }
	run := func(how func(m *Machine) (Debugged, lockstep.Exit, error)) (end, int) {
		t.Helper()
		m := newFaults(t)
		n := 0
		for m.Position() < exits {
			if _, _, err := how(m); err != nil {
				t.Fatal(err)
			}
			m.TakeEffects()
			n++
		}
		b, err := m.Memory.View(0x200000, 24)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if flags := binary.LittleEndian.Uint64(b[8*i:]); flags == 0 || flags&flagTF != 0 {
				t.Errorf("the guest saw flags %#x at %d", flags, i)
			}
		}
		return end{m.Fingerprint(), xxh3.Hash(m.Memory.Bytes()), m.Base().Traps}, n
	}
	want, _ := run(func(m *Machine) (Debugged, lockstep.Exit, error) {
		exit, err := m.Run(lockstep.Free)
		return Exited, exit, err
	})
	got, steps := run(func(m *Machine) (Debugged, lockstep.Exit, error) { return m.Step(lockstep.Free) })
	if got != want {
		t.Errorf("by steps %+v, at full speed %+v", got, want)
	}
	if steps < (exits-1)*faultsLoop {
		t.Errorf("%d steps to exit %d, want about %d", steps, exits, exits*faultsLoop)
	}
	at := map[uint64]int{}
	got, _ = run(func(m *Machine) (Debugged, lockstep.Exit, error) {
		rip := func() uint64 {
			s, err := m.Registers()
			if err != nil {
				t.Fatal(err)
			}
			return s.Regs.RIP
		}
		breaks := []uint64{faultsUD, faultsPF, faultsOut}
		if r := rip(); r == faultsUD || r == faultsPF || r == faultsOut {
			return m.Step(lockstep.Free)
		}
		d, exit, err := m.RunTo(lockstep.Free, breaks)
		if d == AtBreak {
			at[rip()]++
		}
		return d, exit, err
	})
	if got != want {
		t.Errorf("with breakpoints %+v, at full speed %+v", got, want)
	}
	for _, a := range []uint64{faultsUD, faultsPF, faultsOut} {
		if at[a] != exits {
			t.Errorf("%d arrivals at %#x, want %d", at[a], a, exits)
		}
	}
}

// TestStepStops: a stop at a counted trap is one for single steps, too.
func TestStepStops(t *testing.T) {
	for stop := uint64(1); stop <= 3; stop++ { // the page fault, the time-stamp, CR3
		free, stepped := newFaults(t), newFaults(t)
		want, err := free.Run(stop)
		if err != nil || want.Kind != lockstep.Trapped {
			t.Fatalf("%+v, %v", want, err)
		}
		for {
			d, got, err := stepped.Step(stop)
			if err != nil {
				t.Fatal(err)
			}
			if d == Exited {
				if got != want {
					t.Errorf("stop %d: by steps %+v, at full speed %+v", stop, got, want)
				}
				break
			}
		}
		if stepped.Fingerprint() != free.Fingerprint() {
			t.Errorf("stop %d: the fingerprints differ", stop)
		}
		// And what comes then.
		for range 3 {
			if _, err := free.Run(lockstep.Free); err != nil {
				t.Fatal(err)
			}
			for n := stepped.Position(); stepped.Position() == n; {
				if _, _, err := stepped.Step(lockstep.Free); err != nil {
					t.Fatal(err)
				}
			}
			if stepped.Fingerprint() != free.Fingerprint() {
				t.Errorf("stop %d: at exit %d the fingerprints differ", stop, free.Position())
			}
		}
	}
}
