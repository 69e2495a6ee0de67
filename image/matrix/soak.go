package matrix

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/duet-ft/duet/image/pairlab"
)

const (
	// warmUp is how many failovers come before growth is looked for: caches and Go's heap take their size first.
	warmUp = 10
	// maxFiles and maxGrowth are how much more a host may use at the end than behind the warm-up: file descriptors that
	// come and go with connections, and memory in bytes, of which the kernel's caches take some.
	maxFiles, maxGrowth = 16, 32 << 20
)

// alternate are the ways in which the guest loses its primary, in turn; after each, both hosts are still up, and so what
// leaks stays.
var alternate = []Cell{
	single(processKilled, Primary, Moves, soon, ""),
	single(frozen(2*time.Second), Primary, Moves, soon, ""),
	single(suspended(2*time.Second), Primary, Moves, soon, ""),
}

// use is what a host's programs use.
type use struct {
	resident, available  uint64 // bytes: of the daemon, and left on the host
	daemonFiles          int
	openFiles            uint64
	goroutines           int
	vmResident           uint64
	vmFiles, vmGoroutine int
}

func (u use) String() string {
	return fmt.Sprintf("daemon %.1f MiB, %d files, %d goroutines; VM %.0f MiB, %d files, %d goroutines; host: %d files open, %.0f MiB left",
		mib(u.resident), u.daemonFiles, u.goroutines, mib(u.vmResident), u.vmFiles, u.vmGoroutine, u.openFiles, mib(u.available))
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

func (t *Trial) use(ctx context.Context, host string) (u use, err error) {
	h, err := t.rig.API(host).Host(ctx)
	if err != nil {
		return u, err
	}
	vm, err := t.rig.VM(ctx, host)
	if err != nil {
		return u, err
	}
	if h.Usage == nil || vm.Usage == nil {
		return u, fmt.Errorf("host %s doesn't tell what it uses", host)
	}
	return use{
		resident: h.Usage.ResidentBytes, available: h.AvailableBytes, daemonFiles: h.Usage.Files, openFiles: h.OpenFiles,
		goroutines: h.Usage.Goroutines, vmResident: vm.Usage.ResidentBytes, vmFiles: vm.Usage.Files, vmGoroutine: vm.Usage.Goroutines,
	}, nil
}

// grew says what a host uses more of than it may, compared with what it used before in the same role.
func (u use) grew(before use) error {
	var errs []error
	over := func(what string, was, is, more uint64) {
		if is > was+more {
			errs = append(errs, fmt.Errorf("%s: %d, and %d behind the warm-up", what, is, was))
		}
	}
	over("the daemon's memory", before.resident, u.resident, maxGrowth)
	over("the VM process' memory", before.vmResident, u.vmResident, maxGrowth)
	over("the daemon's files", uint64(before.daemonFiles), uint64(u.daemonFiles), maxFiles)
	over("the VM process' files", uint64(before.vmFiles), uint64(u.vmFiles), maxFiles)
	over("the daemon's goroutines", uint64(before.goroutines), uint64(u.goroutines), maxFiles)
	over("the host's open files", before.openFiles, u.openFiles, maxFiles)
	over("memory that the host lacks", u.available, before.available, maxGrowth)
	return errors.Join(errs...)
}

// Soak has the guest change hosts that often, in one uptime, and fails if a host's programs use more and more.
func (t *Trial) Soak(ctx context.Context, failovers int) error {
	first := map[string]use{} // by host and role
	var last map[string]use
	for n := range failovers {
		out, err := t.Run(ctx, alternate[n%len(alternate)])
		if err != nil {
			return fmt.Errorf("failover %d: %w", n+1, err)
		}
		line := fmt.Sprintf("failover %d: %v", n+1, out)
		now := map[string]use{}
		for _, host := range pairlab.Names {
			u, err := t.use(ctx, host)
			if err != nil {
				return err
			}
			role := host + " as secondary"
			if host == out.To {
				role = host + " as primary"
			}
			now[role] = u
			line += fmt.Sprintf("\n    %s: %v", role, u)
			if _, ok := first[role]; !ok && n >= min(warmUp, failovers/2) {
				first[role] = u
			}
		}
		t.log(line)
		last = now
	}
	var errs []error
	for role, u := range last {
		if err := u.grew(first[role]); err != nil {
			errs = append(errs, fmt.Errorf("host %s after %d failovers: %w", role, failovers, err))
		}
	}
	return errors.Join(errs...)
}
