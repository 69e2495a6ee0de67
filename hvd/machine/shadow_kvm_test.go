package machine

import (
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm"
)

// ownSteps is MOV SS, INC R13, INC R14 and a loop, and at 10h a handler that
// counts at 200000h.
var ownSteps = []byte{
	0x8e, 0xd0, 0x49, 0xff, 0xc5, 0x49, 0xff, 0xc6, 0xeb, 0xfe, 0, 0, 0, 0, 0, 0,
	0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x48, 0xcf, // inc qword [200000h]; iretq
}

// TestShadowUnderOwnSteps: a guest that single-steps itself was interrupted
// behind MOV SS. A window opens behind the next instruction and its trap, though
// QEMU forgets the shadow, and the guest loses nothing.
func TestShadowUnderOwnSteps(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const text, idt, debug = 0x100000, 0xc000, 1
	m := newTiny(t, ownSteps)
	handler := uint64(text + 0x10)
	if err := m.Memory.PutUint64(idt+16*debug, handler&0xffff|0x10<<16|0x8e<<40|handler>>16<<48); err != nil {
		t.Fatal(err)
	}
	var s kvm.State
	if err := m.cpu.State(&s); err != nil {
		t.Fatal(err)
	}
	s.Sregs.IDT = kvm.Table{Base: idt, Limit: 0xfff}
	s.Regs.RIP, s.Regs.RAX, s.Regs.RFLAGS = text+2, 0x18, 2|1<<9|flagTF
	const shadow, validShadow = 11, 20 // of struct kvm_vcpu_events
	s.Events[shadow] = 1
	s.Events[validShadow] |= 4
	if err := m.cpu.SetState(&s); err != nil {
		t.Fatal(err)
	}
	if err := m.cpu.Settle(); err != nil {
		t.Fatal(err)
	}
	m.cpu.SetWindow(true)
	if err := m.cpu.Enter(); err != nil {
		t.Fatal(err)
	}
	r := m.cpu.Regs()
	if m.cpu.ExitReason() != kvm.ExitIRQWindowOpen || r.RIP != text+5 || r.RFLAGS&flagTF == 0 || r.R13 != 1 || r.R14 != 0 {
		t.Errorf("exit %d at %#x with flags %#x, R13 %d, R14 %d; want a window at %#x", m.cpu.ExitReason(), r.RIP, r.RFLAGS, r.R13, r.R14, text+5)
	}
	b, err := m.Memory.View(0x200000, 8)
	if err != nil {
		t.Fatal(err)
	}
	if n := binary.LittleEndian.Uint64(b); n != 1 {
		t.Errorf("the guest's handler ran %d times, want once", n)
	}
}
