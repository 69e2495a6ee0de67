package kernel_test

import (
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
)

// Where things lie in the test guest's one mebibyte.
const (
	codeAt    = 0x1000
	handlerAt = 0x1100
	dataAt    = 0x2000
	tablesAt  = 0x3000
	idtAt     = 0x5000
	gdtAt     = 0x6000
	stackTop  = 0x8000
	never     = ^uint64(0)
)

const tscAux = 0xc0000103 // MSR

const allFlags = kvm.FlagTSC | kvm.Counted | kvm.FlagPFWalk | kvm.FlagSet

const (
	efer = 0xc0000080
	star = 0xc0000081 // LSTAR, CSTAR and SFMASK follow
)

// readClock is real-mode code: reads of the clock between which the test looks.
var readClock = []byte{
	0x0f, 0x31, 0x66, 0xa3, 0x00, 0x20, // rdtsc; mov [2000], eax
	0x0f, 0x31, 0x66, 0xa3, 0x04, 0x20, // rdtsc; mov [2004], eax
	0x66, 0xb9, 0xad, 0xde, 0x00, 0x00, // mov ecx, 0xdead
	0x0f, 0x01, 0xf9, // rdtscp
	0x66, 0xa3, 0x08, 0x20, // mov [2008], eax
	0x66, 0x89, 0x0e, 0x0c, 0x20, // mov [200c], ecx
	0xe6, 0x10, // out 0x10, al
	0x0f, 0x31, // rdtsc: a fresh base
	0x0f, 0x01, 0xf9, // rdtscp: the stop
	0x0f, 0x31, // rdtsc: overflow
	0xf4, // hlt
}

// switchAndFault is 32-bit code with paging on.
var (
	switchAndFault = []byte{
		0xb8, 0x00, 0x30, 0x00, 0x00, // mov eax, 0x3000
		0x0f, 0x22, 0xd8, // mov cr3, eax
		0xa1, 0x00, 0x00, 0x40, 0x00, // mov eax, [0x400000]
		0xf4, // hlt
	}
	faultHandler = []byte{
		0x5b,             // pop ebx: the error code
		0x0f, 0x20, 0xd1, // mov ecx, cr2
		0xf4, // hlt
	}
)

type guest struct {
	*kvm.VCPU
	t   *testing.T
	vm  *kvm.VM
	mem *mem.Memory
}

func newGuest(t *testing.T, code []byte, prepare func(*kvm.State)) *guest {
	t.Helper()
	sys, err := kvm.Open()
	if err != nil {
		t.Skip("no usable KVM here; TestInQEMU runs this test where there is one: ", err)
	}
	t.Cleanup(func() { sys.Close() })
	if sys.Supported()&allFlags != allFlags {
		t.Skipf("this KVM supports flags %#x of Duet's, the test needs %#x; TestInQEMU runs it", sys.Supported(), allFlags)
	}
	m, err := mem.New(1 << 20)
	check(t, err)
	vm, err := sys.NewVM(m, allFlags, []uint32{efer, star, star + 1, star + 2, star + 3, tscAux})
	check(t, err)
	cpu, err := vm.NewVCPU()
	check(t, err)
	t.Cleanup(func() { cpu.Close(); vm.Close(); m.Close() })
	leaves, err := sys.SupportedCPUID()
	check(t, err)
	check(t, cpu.SetCPUID(leaves))
	var s kvm.State
	check(t, cpu.State(&s))
	s.Regs.RIP, s.Regs.RSP, s.Regs.RFLAGS = codeAt, stackTop, 2
	prepare(&s)
	check(t, cpu.SetState(&s))
	check(t, m.Write(codeAt, code))
	cpu.Counters().Set = kvm.FlagCR3 | kvm.FlagPF
	return &guest{cpu, t, vm, m}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func realMode(s *kvm.State) {
	s.Sregs.CS.Base, s.Sregs.CS.Selector = 0, 0
	s.MSRs[slices.Index(kvm.StateMSRs[:], tscAux)] = 77
}

func paged(s *kvm.State) {
	flat := kvm.Segment{Limit: 0xffffffff, Selector: 16, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	for _, d := range []*kvm.Segment{&s.Sregs.DS, &s.Sregs.ES, &s.Sregs.FS, &s.Sregs.GS, &s.Sregs.SS} {
		*d = flat
	}
	flat.Selector, flat.Type = 8, 11
	s.Sregs.CS = flat
	s.Sregs.GDT.Base, s.Sregs.GDT.Limit = gdtAt, 23
	s.Sregs.IDT.Base, s.Sregs.IDT.Limit = idtAt, 127
	s.Sregs.CR0, s.Sregs.CR3, s.Sregs.CR4 = 0x80000011, tablesAt, 0x10
}

// newPagedGuest has the first 4 MiB mapped by one large page, and a handler
// for page faults.
func newPagedGuest(t *testing.T, code []byte) *guest {
	g := newGuest(t, code, paged)
	check(t, g.mem.Write(handlerAt, faultHandler))
	for addr, v := range map[uint64]uint64{
		tablesAt:    0x83,
		gdtAt + 8:   0x00cf9b000000ffff,
		gdtAt + 16:  0x00cf93000000ffff,
		idtAt + 112: 0x00008e0000080000 | handlerAt,
	} {
		check(t, g.mem.PutUint64(addr, v))
	}
	return g
}

// leaves runs the guest and checks how it leaves, and where.
func (g *guest) leaves(reason uint32, kind, rip uint64) {
	g.t.Helper()
	for {
		err := g.Run()
		if err == nil {
			break
		}
		if err != kvm.ErrInterrupted {
			g.t.Fatal(err)
		}
	}
	duet := reason == kvm.ExitTSC || reason == kvm.ExitTrap
	if g.ExitReason() != reason || duet && g.HardwareReason() != kind || g.Regs().RIP != rip {
		g.t.Fatalf("left with exit %#x (%d) at %#x, want %#x (%d) at %#x", g.ExitReason(), g.HardwareReason(),
			g.Regs().RIP, reason, kind, rip)
	}
}

func (g *guest) counted(traps uint64, kinds [kvm.Kinds]uint64) {
	g.t.Helper()
	if c := g.Counters(); c.Traps != traps || c.Kinds != kinds {
		g.t.Fatalf("counted %d traps, by kind %d; want %d, %d", c.Traps, c.Kinds, traps, kinds)
	}
}

func TestTimeStamps(t *testing.T) {
	g := newGuest(t, readClock, realMode)
	c := g.Counters()
	c.Stop, c.Base, c.Step, c.Cap = never, 1000, 7, 20

	g.leaves(kvm.ExitIO, 0, 0x101e)
	for i, want := range []uint32{1007, 1014, 1020, 77} {
		if got, err := g.mem.Uint32(dataAt + 4*uint64(i)); err != nil || got != want {
			t.Errorf("the guest stored %d at word %d (%v), want %d", got, i, err, want)
		}
	}
	g.counted(3, [kvm.Kinds]uint64{kvm.KindTSC: 3})

	c.Fresh = 1
	g.leaves(kvm.ExitTSC, 0, 0x1020)
	c.Base, c.Reads, c.Fresh = 5<<32, 0, 0
	check(t, g.Settle())
	if r := g.Regs(); r.RAX != 7 || r.RDX != 5 || r.RIP != 0x1022 {
		t.Errorf("after the fresh base the guest has %#x:%#x at %#x, want 5:7 at 0x1022", r.RDX, r.RAX, r.RIP)
	}

	c.Stop = 5
	g.leaves(kvm.ExitTSC, 1, 0x1022)
	c.Stop, c.Step, c.Reads = never, never, 5
	g.leaves(kvm.ExitHLT, 0, 0x1028)
	if r := g.Regs(); r.RAX != 20 || r.RDX != 5 {
		t.Errorf("a step that overflows gave %#x:%#x, want the cap, 5:0x14", r.RDX, r.RAX)
	}
	g.counted(6, [kvm.Kinds]uint64{kvm.KindTSC: 6})
}

func TestTrapsStopBehindWhatTheyCount(t *testing.T) {
	g := newPagedGuest(t, switchAndFault)
	g.Counters().Stop = 0
	g.leaves(kvm.ExitTrap, 0, 0x1008)
	g.counted(1, [kvm.Kinds]uint64{1})
	g.leaves(kvm.ExitTrap, kvm.KindPF, 0x1008)
	g.counted(2, [kvm.Kinds]uint64{1, 1})

	// The fault is queued, so the state can travel; a second guest takes it.
	var s kvm.State
	check(t, g.Settle())
	check(t, g.State(&s))
	other := newPagedGuest(t, switchAndFault)
	check(t, other.SetState(&s))
	for _, g := range []*guest{g, other} {
		g.leaves(kvm.ExitHLT, 0, 0x1105)
		if r := g.Regs(); r.RBX != 0 || r.RCX != 0x400000 {
			t.Errorf("the handler saw error %#x at %#x, want 0 at 0x400000", r.RBX, r.RCX)
		}
	}
}

func TestTrapsStopAtTheGivenOne(t *testing.T) {
	g := newPagedGuest(t, switchAndFault)
	g.Counters().Stop = 2
	g.leaves(kvm.ExitTrap, kvm.KindPF, 0x1008)
	g.Counters().Stop = never
	g.leaves(kvm.ExitHLT, 0, 0x1105)
	g.counted(2, [kvm.Kinds]uint64{1, 1})
}

func TestSingleStepsCountToo(t *testing.T) {
	code := slices.Clone(switchAndFault)
	copy(code[8:], []byte{0x0f, 0x31, 0xf4}) // rdtsc; hlt
	g := newPagedGuest(t, code)
	for _, rip := range []uint64{0x1005, 0x1008, 0x100a} {
		check(t, g.SingleStep(true))
		g.leaves(kvm.ExitDebug, 0, rip)
	}
	g.counted(2, [kvm.Kinds]uint64{kvm.KindCR3: 1, kvm.KindTSC: 1})
}
