package kernel_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm"
)

// Where things lie in a guest with a kernel and a user, beside kvm_test.go's.
const (
	entryAt  = 0x1200 // LSTAR and STAR's EIP
	centryAt = 0x1300 // CSTAR
	tssAt    = 0x9000
	tableAt  = 0xa000 // maps the first mebibyte by small pages, to itself
	holeAt   = 0xc000 // but for this page
)

// Programs of the tests below. They keep what they see in memory and end with
// HLT in the guest's kernel.
var (
	entry64 = []byte{
		0x48, 0x89, 0x0c, 0xdd, 0x00, 0x20, 0x00, 0x00, // mov [2000h+8*rbx], rcx
		0x4c, 0x89, 0x1c, 0xdd, 0x40, 0x20, 0x00, 0x00, // mov [2040h+8*rbx], r11
		0xff, 0xc3, // inc ebx
		0x83, 0xfb, 0x03, // cmp ebx, 3
		0x74, 0x03, // je 1f
		0x48, 0x0f, 0x07, // sysretq
		0xf4, // 1: hlt
	}
	user64 = []byte{
		0x0f, 0x05, // syscall
		0x66, 0x48, 0x0f, 0x05, // the same with prefixes that change nothing
		0xfd,             // std
		0xf3, 0x0f, 0x05, // the same
	}
	entryCompat = []byte{ // 64-bit, entered from 32-bit code
		0x48, 0x89, 0x0c, 0xdd, 0x00, 0x20, 0x00, 0x00, // mov [2000h+8*rbx], rcx
		0x4c, 0x89, 0x1c, 0xdd, 0x40, 0x20, 0x00, 0x00, // mov [2040h+8*rbx], r11
		0xff, 0xc3, // inc ebx
		0x83, 0xfb, 0x02, // cmp ebx, 2
		0x74, 0x02, // je 1f
		0x0f, 0x07, // sysretl
		0xf4, // 1: hlt
	}
	entryLegacy = []byte{ // 32-bit
		0x89, 0x0c, 0x9d, 0x00, 0x20, 0x00, 0x00, // mov [2000h+4*ebx], ecx
		0x9c,                                     // pushf
		0x8f, 0x04, 0x9d, 0x40, 0x20, 0x00, 0x00, // pop [2040h+4*ebx]
		0x43,             // inc ebx
		0x83, 0xfb, 0x02, // cmp ebx, 2
		0x74, 0x02, // je 1f
		0x0f, 0x07, // sysret
		0xf4, // 1: hlt
	}
	user32 = []byte{
		0x41,       // inc ecx, and no REX
		0x0f, 0x05, // syscall
		0x0f, 0x05, // syscall
	}
	// The kernel looks at EFER, clears SCE, looks again, and tries it.
	withoutSCE = []byte{
		0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, EFER
		0x0f, 0x32, // rdmsr
		0x89, 0x04, 0x25, 0x00, 0x20, 0x00, 0x00, // mov [2000h], eax
		0x24, 0xfe, // and al, feh
		0x0f, 0x30, // wrmsr
		0x0f, 0x32, // rdmsr
		0x89, 0x04, 0x25, 0x04, 0x20, 0x00, 0x00, // mov [2004h], eax
		0x0f, 0x05, // syscall
	}
	sysret  = []byte{0x48, 0x0f, 0x07}
	ud2     = []byte{0x0f, 0x0b}
	handler = []byte{
		0x5f,                                           // pop rdi
		0x48, 0x89, 0x3c, 0x25, 0x80, 0x20, 0x00, 0x00, // mov [2080h], rdi
		0x9c, // pushf
		0xf4, // hlt
	}
)

const (
	userFlags = 0x202 | 1<<21 | 1<<18 | 1 // ID, AC, IF, CF
	flagTF    = 0x100
	flagDF    = 0x400
)

func segment(selector uint16, kind uint8, long bool) kvm.Segment {
	s := kvm.Segment{Limit: 0xffffffff, Selector: selector, Type: kind, Present: 1, DPL: uint8(selector & 3), DB: 1, S: 1, G: 1}
	if long {
		s.DB, s.L = 0, 1
	}
	return s
}

// withUser is a CPU that runs user code, in 64-bit mode.
func withUser(s *kvm.State) {
	s.Sregs.CS, s.Sregs.SS = segment(0x2b, 11, true), segment(0x23, 3, false)
	for _, d := range []*kvm.Segment{&s.Sregs.DS, &s.Sregs.ES, &s.Sregs.FS, &s.Sregs.GS} {
		*d = segment(0x23, 3, false)
	}
	s.Sregs.TR = kvm.Segment{Base: tssAt, Limit: 103, Selector: 0x30, Type: 11, Present: 1}
	s.Sregs.GDT.Base, s.Sregs.GDT.Limit = gdtAt, 63
	s.Sregs.IDT.Base, s.Sregs.IDT.Limit = idtAt, 255
	s.Sregs.CR0, s.Sregs.CR3, s.Sregs.CR4, s.Sregs.EFER = 0x80000011, tablesAt, 0x20, 0x501
	s.Regs.RFLAGS = userFlags
	msr := func(n uint32) *uint64 { return &s.MSRs[slices.Index(kvm.StateMSRs[:], n)] }
	*msr(star) = 0x1b<<48 | 8<<32 | entryAt
	*msr(star + 1), *msr(star + 2) = entryAt, centryAt
	*msr(star + 3) = 0x200 | flagTF | flagDF | 1<<18
}

func compat(s *kvm.State) {
	withUser(s)
	s.Sregs.CS = segment(0x1b, 11, false)
}

// legacy is 32-bit protected mode, and no long mode behind it.
func legacy(s *kvm.State) {
	compat(s)
	s.Sregs.CR0, s.Sregs.CR4, s.Sregs.EFER = 0x11, 0, 1
}

func kernelMode(s *kvm.State) {
	withUser(s)
	s.Sregs.CS, s.Sregs.SS = segment(8, 11, true), segment(0x10, 3, false)
}

func newUserGuest(t *testing.T, code []byte, prepare func(*kvm.State)) *guest {
	g := newGuest(t, code, prepare)
	var s kvm.State
	check(t, g.State(&s))
	entry := entry64
	if s.Sregs.EFER&0x100 == 0 {
		entry = entryLegacy
	}
	check(t, g.mem.Write(entryAt, entry))
	check(t, g.mem.Write(centryAt, entryCompat))
	check(t, g.mem.Write(handlerAt, handler))
	put := func(addr, v uint64) { check(t, g.mem.PutUint64(addr, v)) }
	put(tablesAt, tablesAt+0x1000|7)
	put(tablesAt+0x1000, 0x7000|7)
	put(0x7000, tableAt|7)
	for p := uint64(0); p < 256; p++ {
		if p<<12 != holeAt {
			put(tableAt+8*p, p<<12|7)
		}
	}
	put(gdtAt+0x08, 0x00af9b000000ffff)
	put(gdtAt+0x10, 0x00cf93000000ffff)
	put(gdtAt+0x18, 0x00cffb000000ffff)
	put(gdtAt+0x20, 0x00cff3000000ffff)
	put(gdtAt+0x28, 0x00affb000000ffff)
	for v := uint64(0); v < 16; v++ {
		put(idtAt+16*v, 0x00008e0000080000|handlerAt)
	}
	put(tssAt+4, stackTop)
	return g
}

// outcome is what a guest has come to at its HLT.
func (g *guest) outcome() []byte {
	g.t.Helper()
	g.leavesBy(kvm.ExitHLT)
	check(g.t, g.Settle())
	var s kvm.State
	check(g.t, g.State(&s))
	seen, err := g.mem.View(dataAt, 0x100)
	check(g.t, err)
	return fmt.Appendf(nil, "%x\n%+v\n%+v", seen, s.Regs, s.Sregs)
}

// leavesBy runs the guest until it leaves, which must be for that reason.
func (g *guest) leavesBy(reason uint32) {
	g.t.Helper()
	for {
		err := g.Run()
		if err == kvm.ErrInterrupted {
			continue
		}
		check(g.t, err)
		break
	}
	if g.ExitReason() != reason {
		g.t.Fatalf("left with exit %#x at %#x, want %#x", g.ExitReason(), g.Regs().RIP, reason)
	}
}

// TestSystemCallsComeOutTheSame: a guest can't tell whether its system calls
// are counted. Where they aren't, the CPU itself is what to compare with.
func TestSystemCallsComeOutTheSame(t *testing.T) {
	with := func(prepare func(*kvm.State), change func(*kvm.State)) func(*kvm.State) {
		return func(s *kvm.State) { prepare(s); change(s) }
	}
	trace := func(s *kvm.State) { s.Regs.RFLAGS |= flagTF }
	// TCG forgets the carry at a SYSCALL that masks no flags.
	unmasked := func(s *kvm.State) {
		s.Regs.RFLAGS = s.Regs.RFLAGS&^1 | flagTF
		s.MSRs[slices.Index(kvm.StateMSRs[:], star+3)] = 0
	}
	for name, c := range map[string]struct {
		code           []byte
		prepare        func(*kvm.State)
		calls, returns uint64
	}{
		"64-bit":            {user64, withUser, 3, 2},
		"32-bit":            {user32, compat, 2, 1},
		"no long mode":      {user32, legacy, 2, 1},
		"switched off":      {withoutSCE, kernelMode, 0, 0},
		"off":               {user64, with(withUser, func(s *kvm.State) { s.Sregs.EFER &^= 1 }), 0, 0},
		"undefined":         {ud2, withUser, 0, 0},
		"return by user":    {sysret, withUser, 0, 0},
		"traced, masked":    {user64, with(withUser, trace), 1, 1},
		"traced into":       {user64, with(withUser, unmasked), 1, 0},
		"at a page's end":   {nil, with(withUser, func(s *kvm.State) { s.Regs.RIP = holeAt - 2; s.Regs.RBX = 2 }), 1, 0},
		"shadow of SS":      {[]byte{0x8e, 0xd0, 0x0f, 0x05}, with(withUser, func(s *kvm.State) { s.Regs.RAX, s.Regs.RBX = 0x23, 2 }), 1, 0},
		"kernel of its own": {append(slices.Clone(sysret), 0xf4), with(kernelMode, func(s *kvm.State) { s.Regs.RCX, s.Regs.R11, s.Regs.RBX = codeAt+0x40, 0x27ffff, 2 }), 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var want []byte
			for _, set := range []uint64{0, kvm.FlagSyscall} {
				g := newUserGuest(t, c.code, c.prepare)
				check(t, g.mem.Write(holeAt-2, user64[:2]))
				check(t, g.mem.Write(codeAt+0x40, user64))
				g.Counters().Set = set
				got := g.outcome()
				if set == 0 {
					want = got
					g.counted(0, [kvm.Kinds]uint64{})
					continue
				}
				if !bytes.Equal(got, want) {
					t.Errorf("with system calls counted the guest comes to\n%s\nwithout to\n%s", got, want)
				}
				g.counted(c.calls+c.returns, [kvm.Kinds]uint64{kvm.KindSyscall: c.calls, kvm.KindSysret: c.returns})
			}
		})
	}
}

func TestSystemCallsStopBehindThemselves(t *testing.T) {
	g := newUserGuest(t, user64, withUser)
	c := g.Counters()
	c.Set, c.Stop = kvm.FlagSyscall, 0
	g.leaves(kvm.ExitTrap, kvm.KindSyscall, entryAt)
	g.leaves(kvm.ExitTrap, kvm.KindSysret, codeAt+2)
	c.Set = 0 // from here on they are the guest's own affair
	g.leaves(kvm.ExitHLT, 0, entryAt+27)
	g.counted(2, [kvm.Kinds]uint64{kvm.KindSyscall: 1, kvm.KindSysret: 1})
}

func TestSystemCallsCanBeSteppedOver(t *testing.T) {
	g := newUserGuest(t, user64, withUser)
	g.Counters().Set = kvm.FlagSyscall
	for _, rip := range []uint64{entryAt, entryAt + 8, entryAt + 16, entryAt + 18, entryAt + 21, entryAt + 23, codeAt + 2, entryAt} {
		check(t, g.SingleStep(true))
		g.leaves(kvm.ExitDebug, 0, rip)
	}
	check(t, g.SingleStep(false))
	g.leaves(kvm.ExitHLT, 0, entryAt+27)
	g.counted(5, [kvm.Kinds]uint64{kvm.KindSyscall: 3, kvm.KindSysret: 2})
	for at := uint64(dataAt + 0x40); at < dataAt+0x58; at += 8 {
		if flags, err := g.mem.Uint64(at); err != nil || flags&^flagDF != userFlags {
			t.Errorf("the guest's flags at a stepped call were %#x (%v), want %#x", flags, err, userFlags)
		}
	}
}

// writer writes to three pages, reads one of them first, and begins again.
var writer = []byte{
	0x89, 0x04, 0x25, 0x00, 0x00, 0x02, 0x00, // mov [20000h], eax
	0x8b, 0x04, 0x25, 0x00, 0x10, 0x02, 0x00, // mov eax, [21000h]
	0x89, 0x04, 0x25, 0x08, 0x00, 0x02, 0x00, // mov [20008h], eax
	0x89, 0x04, 0x25, 0x00, 0x10, 0x02, 0x00, // mov [21000h], eax
	0xe6, 0x10, // out 10h, al
	0xeb, 0xe0, // jmp to the first
}

// TestFirstWritesAreCounted: at each page's first write since the dirty log was
// cleared the guest can be stopped, before that instruction.
func TestFirstWritesAreCounted(t *testing.T) {
	g := newUserGuest(t, writer, kernelMode)
	check(t, g.vm.LogDirty(true))
	c := g.Counters()
	c.Set, c.Stop = kvm.FlagWrite, 0
	bits := make([]uint64, 4)
	for round := uint64(1); round <= 3; round++ {
		g.leaves(kvm.ExitTrap, kvm.KindWrite, codeAt)
		g.leaves(kvm.ExitTrap, kvm.KindWrite, codeAt+21)
		g.leaves(kvm.ExitIO, 0, codeAt+28)
		g.leaves(kvm.ExitIO, 0, codeAt+28)
		g.counted(2*round, [kvm.Kinds]uint64{kvm.KindWrite: 2 * round})
		clear(bits)
		check(t, g.vm.TakeDirty(bits))
		if bits[0]>>32&3 != 3 {
			t.Errorf("round %d: the pages written aren't in the dirty log %x", round, bits)
		}
	}
}
