package daemon

import (
	"context"
	"fmt"
	"os"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/locate"
	"golang.org/x/sys/unix"
)

// Hardware is what a host offers to VMs.
type Hardware struct {
	MemoryMiB int
	// Locator is how a guest is stopped where it makes no exit: "pmu", "trap", or "resync" without our kernel.
	Locator string
	// LocatorWhy says in one line what the host's performance counters have to do with it.
	LocatorWhy string
	// CPU is the processor's name, Virtual "SVM", "VMX" or empty, and Nested says that it has nested page tables.
	CPU       string
	Virtual   string
	Nested    bool
	Microcode string // its version
}

// measure opens KVM and measures the memory. The memory is known with an error about KVM, too.
func measure() (Hardware, error) {
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo") // what it doesn't tell is told as not known
	h := processor(cpuinfo)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return h, fmt.Errorf("memory: %w", err)
	}
	h.MemoryMiB = int(uint64(info.Totalram) * uint64(info.Unit) >> 20)
	h.Locator = "none"
	s, err := kvm.Open()
	if err != nil {
		return h, err
	}
	defer s.Close()
	h.Locator = "resync"
	flags := s.Supported()
	if flags&kvm.FlagCR3 != 0 {
		h.Locator = "trap"
	}
	if flags == 0 {
		h.LocatorWhy = "this kernel counts no traps: it isn't Duet's"
		return h, nil
	}
	if event, err := locate.Probe(s); err != nil {
		h.LocatorWhy = "no pmu: " + err.Error()
	} else {
		h.Locator, h.LocatorWhy = "pmu", "the counters of this "+event.Name+" passed the self-test"
	}
	return h, nil
}

// checkHardware looks at the host once, and says whether VMs can run.
func (d *instance) checkHardware() bool {
	h, err := d.opt.Hardware()
	state := "ok"
	if err != nil {
		state = fmt.Sprintf("no KVM: %v", err)
	}
	d.mu.Lock()
	d.hardware, d.kvm = h, state
	d.mu.Unlock()
	if err != nil {
		d.say("kvm", state)
		return false
	}
	d.say("kvm", fmt.Sprintf("KVM is there, %d MiB of memory, locator %s (%s)", h.MemoryMiB, h.Locator, h.LocatorWhy))
	d.kick()
	return true
}

// keepHardware looks until VMs can run: KVM's modules may be late.
func (d *instance) keepHardware(ctx context.Context) {
	for sleep(ctx, d.opt.Retry, nil) {
		if d.checkHardware() {
			return
		}
	}
}
