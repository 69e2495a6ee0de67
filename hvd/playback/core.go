package playback

import (
	"errors"
	"os"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/recording/elfcore"
)

const cr4LA57 = 1 << 12

// WriteCore writes the guest as it is now as an ELF core.
func (p *Player) WriteCore(path string) error {
	s, err := p.Machine.Registers()
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var to elfcore.File = f
	if !info.Mode().IsRegular() {
		to = fixed{f} // a disk: it must be all zeros
	}
	if err := elfcore.Write(to, coreOf(p.Machine, s)); err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// fixed is a file of a size that can't be changed.
type fixed struct{ *os.File }

func (fixed) Truncate(int64) error { return nil }

func coreOf(m *machine.Machine, s *kvm.State) elfcore.Core {
	r, x := &s.Regs, &s.Sregs
	c := elfcore.Core{Registers: elfcore.Registers{
		R15: r.R15, R14: r.R14, R13: r.R13, R12: r.R12, RBP: r.RBP, RBX: r.RBX, R11: r.R11, R10: r.R10,
		R9: r.R9, R8: r.R8, RAX: r.RAX, RCX: r.RCX, RDX: r.RDX, RSI: r.RSI, RDI: r.RDI, OrigRAX: ^uint64(0),
		RIP: r.RIP, CS: uint64(x.CS.Selector), RFLAGS: r.RFLAGS, RSP: r.RSP, SS: uint64(x.SS.Selector),
		FSBase: x.FS.Base, GSBase: x.GS.Base, DS: uint64(x.DS.Selector), ES: uint64(x.ES.Selector),
		FS: uint64(x.FS.Selector), GS: uint64(x.GS.Selector),
	}}
	for _, g := range m.Memory.Regions() {
		c.Memory = append(c.Memory, elfcore.Region{Physical: g.Guest, Bytes: m.Memory.Bytes()[g.Offset : g.Offset+g.Size]})
	}
	exists := func(physical, size uint64) bool {
		_, err := m.Memory.View(physical, size)
		return err == nil
	}
	entry := func(physical uint64) (uint64, bool) {
		v, err := m.Memory.Uint64(physical)
		return v, err == nil
	}
	levels := 4
	if x.CR4&cr4LA57 != 0 {
		levels = 5
	}
	c.Mappings = elfcore.Walk(x.CR3, levels, exists, entry)
	for _, g := range c.Memory {
		if c.VMCoreInfo = elfcore.FindVMCoreInfo(g.Bytes); c.VMCoreInfo != nil {
			break
		}
	}
	return c
}
