// Package volumecmd is what the program hvd does to a volume from the command line, on any machine: format, check, repair
// and list one, go back to older definitions, define a VM, fill a disk.
//
// # Place
//
// The program hvd calls Run. It imports hvd/volume, and iscsi, nexus and hostcfg to reach one; hvd/daemon/define and survey; and
// ftlink/pair to show who may run a VM.
package volumecmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/daemon/survey"
	"github.com/duet-ft/duet/hvd/volume"
)

// ErrUsage says that the command line isn't understood; Usage helps.
var ErrUsage = errors.New("wrong use")

// Usage explains the command lines.
const Usage = `  hvd volume format VOLUME                  make an empty volume Duet's
  hvd volume check VOLUME                   a table of what it and its target are like; exit status 1 if no pair can work with it
  hvd volume list VOLUME                    its VMs and disks
  hvd volume repair VOLUME                  write damaged metadata again, where an undamaged copy has it
  hvd volume rollback VOLUME                go back to older VM definitions, where the newest are damaged
  hvd volume release VOLUME VM              make a VM stopped whose arbiter block is damaged, when you know that no host runs it
  hvd volume discover --portal ADDRESS[:PORT]   the targets that a portal knows, and their portals
  hvd volume create VOLUME DEFINITION       define a VM, from a file of JSON; a host fills its disks with zeros
  hvd disk import VOLUME VM DISK IMAGE      copy a raw disk image onto a disk of a VM that is stopped

VOLUME is one of
  --portal ADDRESS[:PORT] --target NAME [--lun N] [--user NAME --secret SECRET] [--portal2 ADDRESS[:PORT]]
        [--target-user NAME --target-secret SECRET] [--digests]
        (the secrets can be in the environment, as DUET_SECRET and DUET_TARGET_SECRET)
  --file IMAGE [--block-size 512|4096]      a file or block device that no target serves meanwhile
`

// Run carries out "volume ..." or "disk ..."; args come after that word. What it finds goes to out, and how far it is
// to progress, line by line.
func Run(ctx context.Context, word string, args []string, out, progress io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: hvd %s does what? It can %s", ErrUsage, word, verbs[word])
	}
	c, ok := commands[word+" "+args[0]]
	if !ok {
		return fmt.Errorf("%w: there is no hvd %s %.40s", ErrUsage, word, args[0])
	}
	var a access
	anyTarget := c.run == nil
	rest, err := a.parse(word, args[1:], anyTarget)
	if err != nil {
		return err
	}
	if anyTarget && len(rest) == 0 {
		return a.discover(ctx, out)
	}
	if want := strings.Fields(c.args); len(rest) != len(want) {
		return fmt.Errorf("%w: hvd %s %s takes %s and has %d arguments behind the flags",
			ErrUsage, word, args[0], strings.Join(append([]string{"VOLUME"}, want...), " "), len(rest))
	}
	s, err := a.open(ctx, c.writes)
	if err != nil {
		return err
	}
	err = c.run(ctx, s, rest, out, progress)
	return errors.Join(err, s.close(context.WithoutCancel(ctx)))
}

type command struct {
	args   string // the arguments' names
	writes bool
	// run is nil for the command that needs no volume, discover.
	run func(ctx context.Context, s *store, args []string, out, progress io.Writer) error
}

var commands = map[string]command{
	"volume format":   {"", true, format},
	"volume check":    {"", false, check},
	"volume list":     {"", false, list},
	"volume repair":   {"", true, repair},
	"volume rollback": {"", true, rollback},
	"volume release":  {"VM", true, release},
	"volume discover": {"", false, nil},
	"volume create":   {"DEFINITION", true, create},
	"disk import":     {"VM DISK IMAGE", true, importDisk},
}

// verbs are what may follow each word.
var verbs = map[string]string{"volume": "format, check, list, repair, rollback, release, discover, create", "disk": "import"}

func format(ctx context.Context, s *store, _ []string, out, _ io.Writer) error {
	if err := volume.Format(ctx, s); err != nil {
		return err
	}
	v, err := volume.Open(ctx, s)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "volume %s is ready\n", v.ID())
	return nil
}

func check(ctx context.Context, s *store, _ []string, out, _ io.Writer) error {
	f, err := survey.Look(ctx, s, s.session)
	if err != nil {
		return err
	}
	return survey.Print(out, f.Report())
}

// release makes a VM stopped whose arbiter block is damaged.
func release(ctx context.Context, s *store, args []string, out, _ io.Writer) error {
	v, err := volume.Open(ctx, s)
	if err != nil {
		return err
	}
	def, err := v.Definition(ctx, args[0])
	if err != nil {
		return err
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	if err := define.Reset(ctx, v, def); err != nil {
		return err
	}
	fmt.Fprintf(out, "VM %s is stopped now\n", def.Name)
	return nil
}

func list(ctx context.Context, s *store, _ []string, out, _ io.Writer) error {
	v, err := volume.Open(ctx, s)
	if err != nil {
		return err
	}
	list, err := v.Definitions(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VM\tSTATE\tMEMORY\tOUTPUT\tSLOT\tCID\tMAC\tDISKS")
	for _, d := range list {
		state := "damaged arbiter block"
		if b, err := define.Block(ctx, v, d); err == nil {
			state = describe(b)
		}
		if err := d.Ready(); err != nil {
			state += ", disks not ready"
		}
		disks := ""
		for _, k := range d.Disks {
			disks += fmt.Sprintf("%s:%d MiB ", k.Name, k.SizeBytes>>20)
		}
		fmt.Fprintf(w, "%s\t%s\t%d MiB\t%s\t%d\t%d\t%s\t%s\n", d.Name, state, d.MemoryMiB, d.Output, d.Slot, d.CID, d.MAC, disks)
	}
	return w.Flush()
}

func describe(b pair.Block) string {
	switch {
	case define.Held(b):
		return "stopped, disks being changed"
	case b.Kind == pair.Solo:
		return fmt.Sprintf("one host's, epoch %d", b.Epoch)
	case b.Kind == pair.Pair:
		return fmt.Sprintf("protected, epoch %d", b.Epoch)
	}
	return "stopped"
}

// repair writes again what has an undamaged copy.
func repair(ctx context.Context, s *store, _ []string, out, _ io.Writer) error {
	v, err := volume.Open(ctx, s)
	if err != nil {
		return err
	}
	h, err := volume.Inspect(ctx, s)
	if err != nil {
		return err
	}
	if !h.Damaged() {
		fmt.Fprintln(out, "nothing is damaged")
		return nil
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	if err := v.Repair(ctx); err != nil {
		return err
	}
	for _, p := range h.Pieces {
		if p.Fault != "" {
			fmt.Fprintf(out, "%s (block %d): repaired; it was: %s\n", p.Name, p.LBA, p.Fault)
		}
	}
	return nil
}

// rollback returns to the older copy of the VM definitions, and says what it holds. It does so only where the newest one
// is damaged.
func rollback(ctx context.Context, s *store, args []string, out, progress io.Writer) error {
	v, err := volume.Open(ctx, s)
	switch {
	case err == nil:
		return errors.New("the newest VM definitions are undamaged: there is nothing to go back from")
	case v == nil || !errors.Is(err, volume.ErrDamaged):
		return err
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	if err := v.Rollback(ctx); err != nil {
		return err
	}
	return list(ctx, s, args, out, progress)
}

func create(ctx context.Context, s *store, args []string, out, _ io.Writer) error {
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	def, err := volume.ParseDefinition(text)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	v, err := volume.Open(ctx, s)
	if err != nil {
		return err
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	if def, err = define.Create(ctx, v, def); err != nil {
		return err
	}
	fmt.Fprintf(out, "VM %s is defined, uuid %s\n", def.Name, def.UUID)
	return nil
}
