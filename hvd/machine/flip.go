//go:build faultinject

package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
)

// FlipMemory flips one bit of guest memory, of any page, and says which.
func (m *Machine) FlipMemory(r *rand.Rand) (string, error) { return flipMemory(m.Memory, r), nil }

func flipMemory(m *mem.Memory, r *rand.Rand) string {
	page, bit := r.IntN(m.Pages()), r.IntN(8*mem.PageSize)
	was := m.HashPage(page)
	m.Page(page)[bit/8] ^= 1 << (bit % 8)
	if m.HashPage(page) == was {
		// An accessed bit: set by the processor as it likes.
		m.Page(page)[bit/8] ^= 1 << (bit % 8)
		return flipMemory(m, r)
	}
	return fmt.Sprintf("bit %d of page %#x", bit, page)
}

// FlipRegister flips one bit of a register of the CPU or its FPU.
func (m *Machine) FlipRegister(r *rand.Rand) (string, error) {
	if err := m.cpu.Settle(); err != nil {
		return "", err
	}
	var was kvm.State
	if err := m.cpu.State(&was); err != nil {
		return "", err
	}
	for {
		s, name := was, ""
		bit := r.IntN(64)
		general := []*uint64{
			&s.Regs.RAX, &s.Regs.RBX, &s.Regs.RCX, &s.Regs.RDX, &s.Regs.RSI, &s.Regs.RDI, &s.Regs.RSP, &s.Regs.RBP,
			&s.Regs.R8, &s.Regs.R9, &s.Regs.R10, &s.Regs.R11, &s.Regs.R12, &s.Regs.R13, &s.Regs.R14, &s.Regs.R15, &s.Regs.RIP,
		}
		switch n := r.IntN(len(general) + 16); {
		case n < len(general):
			*general[n] ^= 1 << bit
			name = fmt.Sprintf("bit %d of general register %d", bit, n)
		default:
			x := n - len(general)
			const xmm = 160 // offset of XMM0 (AMD64 APM volume 2, 11.4.4)
			s.XSAVE[xmm+16*x+bit/8] ^= 1 << (bit % 8)
			s.XSAVE[512] |= 2
			name = fmt.Sprintf("bit %d of XMM%d", bit, x)
		}
		// A RIP that isn't canonical can't be set.
		if err := m.cpu.SetState(&s); err == nil {
			var now kvm.State
			if err := m.cpu.State(&now); err != nil {
				return "", err
			}
			if now.Regs != was.Regs || now.XSAVE != was.XSAVE {
				return name, nil
			}
		}
		if err := m.cpu.SetState(&was); err != nil {
			return "", err
		}
	}
}

// FlipDevice flips one bit of a number in a device's state.
func (m *Machine) FlipDevice(r *rand.Rand) (string, error) { return flipDevice(m.Board, r) }

func flipDevice(devices *board.Board, r *rand.Rand) (string, error) {
	was, err := devices.State()
	if err != nil {
		return "", err
	}
	for range 1000 {
		b := slices.Clone(was)
		at := r.IntN(len(b))
		if b[at] < '0' || b[at] > '9' {
			continue
		}
		b[at] ^= 1 << r.IntN(3)
		if !json.Valid(b) || devices.Restore(b) != nil {
			continue
		}
		if now, err := devices.State(); err == nil && !slices.Equal(now, was) {
			return fmt.Sprintf("a digit of the devices' state, ...%s...", b[max(0, at-30):min(len(b), at+10)]), nil
		}
	}
	return "", errors.Join(errors.New("no device's state could be flipped"), devices.Restore(was))
}
