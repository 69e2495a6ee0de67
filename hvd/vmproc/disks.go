package vmproc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/duet-ft/duet/hvd/volume"
)

// A VM's disks change only while nobody can start it. This process may have
// learned of them before that, and hear of the change late; so it looks again
// when it has won the VM and before it boots it, and the two copies of a VM
// compare where their disks lie before one follows the other.

// errChanged says that the disks aren't where this process has found them.
var errChanged = errors.New("its disks were changed a moment ago; start it again")

// sameDisks looks whether the VM's disks are what they were when this process
// opened them.
func (p *Process) sameDisks(ctx context.Context) error {
	vol, err := volume.Open(ctx, p.session)
	if err != nil {
		return err
	}
	def, err := vol.Definition(ctx, p.def.Name)
	if errors.Is(err, volume.ErrNotFound) {
		return unbootableError{errors.New("it was deleted")}
	}
	if err != nil {
		return err
	}
	if err := def.Ready(); err != nil {
		return unbootableError{err}
	}
	if def.UUID != p.def.UUID || len(def.Disks) != len(p.disks) {
		return unbootableError{errChanged}
	}
	for i, k := range def.Disks {
		e, err := vol.Disk(ctx, def.Name, k.Name)
		if err != nil {
			return err
		}
		if e != p.disks[i].Extent() {
			return unbootableError{errChanged}
		}
	}
	return nil
}

// layout says where the disks lie, for the other host to compare.
func layout(disks []*volume.DiskIO) string {
	var b strings.Builder
	for _, d := range disks {
		e := d.Extent()
		fmt.Fprintf(&b, "%d+%d ", e.FirstLBA, e.Blocks)
	}
	return strings.TrimSpace(b.String())
}
