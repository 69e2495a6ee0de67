// Package survey looks at a volume and its target, and says in a table what they are like and whether a pair can work with
// them.
//
// # Place
//
// hvd/daemon serves the table ("duet volume check"), and hvd/daemon/volumecmd prints it ("hvd volume check"). Look asks;
// Findings.Report, which is pure, judges. It imports hvd/api for the table, hvd/daemon/define for arbiter blocks, and
// hvd/iscsi and hvd/volume.
package survey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/volume"
)

// Findings are what Look found.
type Findings struct {
	Portal, Target string
	LUN            uint64

	Blocks    uint64
	BlockSize int

	// Features are nil where the volume is a file.
	Features *iscsi.Features
	// Registered are the sessions that may write; reservation type 0: nobody is kept out.
	Registered  []iscsi.Registration
	Reservation byte

	// Health is nil where HealthErr says that the volume isn't Duet's, or can't be read.
	Health    *volume.Health
	HealthErr error
	// VMs are those that are defined, with what is wrong with their blocks and disks.
	VMs []VM
}

// VM is what a volume says about a VM.
type VM struct {
	Name  string
	State string // what its arbiter block says
	Fault string // what keeps it from running, one line, or empty
	Wait  string // what keeps it from being started now, one line, or empty
}

// Look asks a volume, and its target if there is a session. It changes nothing. An error says that the volume can't be
// reached.
func Look(ctx context.Context, b volume.Blocks, s *iscsi.Session) (f Findings, err error) {
	f.Blocks, f.BlockSize = b.Capacity()
	if s != nil {
		if err := f.target(ctx, s); err != nil {
			return f, err
		}
	}
	f.Health, f.HealthErr = volume.Inspect(ctx, b)
	if f.Health == nil || f.Health.Err != nil {
		return f, nil
	}
	v, err := volume.Open(ctx, b)
	if err != nil {
		f.HealthErr = err
		return f, nil
	}
	for _, def := range f.Health.VMs {
		f.VMs = append(f.VMs, lookVM(ctx, v, def))
	}
	return f, nil
}

func (f *Findings) target(ctx context.Context, s *iscsi.Session) error {
	f.Portal, f.Target, f.LUN = s.Address()
	features, err := s.Features(ctx)
	if err != nil {
		return err
	}
	f.Features = &features
	if features.Reservations != iscsi.Yes {
		return nil
	}
	if f.Registered, _, err = s.Registrations(ctx); err != nil {
		return err
	}
	_, f.Reservation, err = s.Reservation(ctx)
	return err
}

func lookVM(ctx context.Context, v *volume.Volume, def volume.Definition) VM {
	vm := VM{Name: def.Name}
	var faults, waits []string
	b, err := define.Block(ctx, v, def)
	switch {
	case err != nil:
		vm.State = "unknown"
		faults = append(faults, err.Error())
	case define.Held(b):
		vm.State = "stopped, its disks are being changed"
	case b.Kind == pair.Free:
		vm.State = "stopped"
	case b.Kind == pair.Solo:
		vm.State = fmt.Sprintf("one host's, epoch %d", b.Epoch)
	default:
		vm.State = fmt.Sprintf("protected, epoch %d", b.Epoch)
	}
	for _, k := range def.Disks {
		if err := k.Ready(def.Name); err != nil {
			waits = append(waits, err.Error())
		}
		if _, err := v.Disk(ctx, def.Name, k.Name); err != nil {
			faults = append(faults, err.Error())
		}
	}
	vm.Fault, vm.Wait = strings.Join(faults, "; "), strings.Join(waits, "; ")
	return vm
}

// Print writes a report as a table, and its verdict behind; a bad one is the error.
func Print(out io.Writer, r api.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range r.Rows {
		line := api.OneLine(row.Name) + "\t" + api.OneLine(row.Value)
		if row.Trouble != "" {
			line += "\t! " + api.OneLine(row.Trouble)
		}
		fmt.Fprintln(w, line)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !r.OK {
		return errors.New(api.OneLine(r.Verdict))
	}
	_, err := fmt.Fprintf(out, "%s\n", api.OneLine(r.Verdict))
	return err
}
