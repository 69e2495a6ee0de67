package boot

import (
	"fmt"

	"github.com/duet-ft/duet/hvd/boot/kallsyms"
	"github.com/duet-ft/duet/hvd/boot/young"
)

// What a loaded kernel does with the accessed bits of its page tables: whether
// two executions of the guest can differ by them.
const (
	Steady    = "steady"    // it neither clears them nor looks at them to reclaim memory
	Untouched = "untouched" // it was loaded as it is, as the VM's definition says
	Unknown   = "unknown"   // it was loaded as it is, for it can't be changed
)

// Accessed says what was done about accessed bits.
type Accessed struct {
	State string // Steady, Untouched or Unknown; empty where nobody knows
	Why   string // Unknown: the reason, one line
}

// harm is what accessed bits can do.
const harm = "divergences by reclaim are possible; verified output keeps them harmless"

// String is one line for people.
func (a Accessed) String() string {
	switch a.State {
	case Steady:
		return Steady + ": reclaim doesn't depend on accessed bits"
	case Untouched:
		return Untouched + ", as the VM's definition says: " + harm
	case Unknown:
		return Unknown + ": " + a.Why + "; " + harm
	}
	return a.State
}

// steady changes a kernel that was written to memory, if that is possible. A
// kernel that it isn't possible for boots all the same.
func steady(list []segment, write func(addr uint64, b []byte)) Accessed {
	mapped := make([]kallsyms.Segment, len(list))
	for i, s := range list {
		mapped[i] = kallsyms.Segment{Addr: s.virt, Data: s.data}
	}
	cure, err := young.Find(mapped)
	if err != nil {
		return Accessed{State: Unknown, Why: err.Error()}
	}
	at := make([]uint64, len(cure.Patches))
	for i, p := range cure.Patches {
		var ok bool
		if at[i], ok = physical(list, p.Addr, uint64(len(p.New))); !ok {
			return Accessed{State: Unknown, Why: fmt.Sprintf("%s isn't in memory", p.Function)}
		}
	}
	for i, p := range cure.Patches {
		write(at[i], p.New)
	}
	return Accessed{State: Steady}
}

// physical is where n bytes at a virtual address of the kernel are loaded.
func physical(list []segment, virt, n uint64) (uint64, bool) {
	for _, s := range list {
		if size := uint64(len(s.data)); virt >= s.virt && virt-s.virt < size && n <= size-(virt-s.virt) {
			return s.addr + (virt - s.virt), true
		}
	}
	return 0, false
}
