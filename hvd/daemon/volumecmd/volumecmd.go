// Package volumecmd is what the program hvd does to a volume from the command line, on any machine: format, check and
// list one, go back to older definitions, define a VM, fill a disk.
//
// # Place
//
// The program hvd calls Run. It imports hvd/volume, and iscsi, nexus and hostcfg to reach one; hvd/daemon/define; and
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
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/volume"
)

// ErrUsage says that the command line isn't understood; Usage helps.
var ErrUsage = errors.New("wrong use")

// Usage explains the command lines.
const Usage = `  hvd volume format VOLUME                  make an empty volume Duet's
  hvd volume check VOLUME                   look whether it is undamaged, and what its target can do
  hvd volume list VOLUME                    its VMs and disks
  hvd volume rollback VOLUME                go back to older VM definitions, where the newest are damaged
  hvd volume discover --portal ADDRESS[:PORT]   the targets that a portal knows, and their portals
  hvd volume create VOLUME DEFINITION       define a VM, from a file of JSON
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
	"volume rollback": {"", true, rollback},
	"volume discover": {"", false, nil},
	"volume create":   {"DEFINITION", true, create},
	"disk import":     {"VM DISK IMAGE", true, importDisk},
}

// verbs are what may follow each word.
var verbs = map[string]string{"volume": "format, check, list, rollback, discover, create", "disk": "import"}

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
	blocks, size := s.Capacity()
	fmt.Fprintf(out, "capacity     %d MiB, blocks of %d bytes\n", blocks*uint64(size)>>20, size)
	if s.session != nil {
		if err := abilities(ctx, s.session, out); err != nil {
			return err
		}
	}
	v, err := volume.Open(ctx, s)
	if err != nil {
		return err
	}
	list, err := v.Definitions(ctx)
	if err != nil {
		return err
	}
	var bad error
	for _, def := range list {
		if _, err := define.Block(ctx, v, def); err != nil {
			bad = errors.Join(bad, fmt.Errorf("VM %s: %w", def.Name, err))
		}
		for _, k := range def.Disks {
			if _, err := v.Disk(ctx, def.Name, k.Name); err != nil {
				bad = errors.Join(bad, err)
			}
		}
	}
	if bad != nil {
		return bad
	}
	fmt.Fprintf(out, "volume       %s, %d VMs, undamaged\n", v.ID(), len(list))
	return nil
}

// abilities prints what the volume's target is and can do.
func abilities(ctx context.Context, s *iscsi.Session, out io.Writer) error {
	i := s.Inquiry()
	fmt.Fprintf(out, "target       %s %s %s\n", i.Vendor, i.Product, i.Revision)
	a, err := s.Abilities(ctx)
	if err != nil {
		return err
	}
	reserved := ""
	if a.Reservations {
		list, _, err := s.Registrations(ctx)
		if err != nil {
			return err
		}
		reserved = fmt.Sprintf(", %d registered", len(list))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, x := range []struct {
		name, what, without string
		ok                  bool
	}{
		{"COMPARE AND WRITE", "decides who runs a VM", "no VM can run on this volume", a.CompareAndWrite},
		{"PERSISTENT RESERVE", "keeps a fenced host's writes out" + reserved, "no VM can be protected", a.Reservations},
		{"WRITE SAME", "zeros without sending them", "zeros are sent", a.WriteSame},
		{"UNMAP", "gives space back", "space isn't given back", a.Unmap},
	} {
		state, text := "yes", x.what
		if !x.ok {
			state, text = "no", x.without
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", x.name, state, text)
	}
	return w.Flush()
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
		disks := ""
		for _, k := range d.Disks {
			disks += fmt.Sprintf("%s:%d MiB ", k.Name, k.SizeBytes>>20)
		}
		fmt.Fprintf(w, "%s\t%s\t%d MiB\t%s\t%d\t%d\t%s\t%s\n", d.Name, state, d.MemoryMiB, d.Output, d.Slot, d.CID, d.MAC, disks)
	}
	return w.Flush()
}

func describe(b pair.Block) string {
	switch b.Kind {
	case pair.Solo:
		return fmt.Sprintf("one host's, epoch %d", b.Epoch)
	case pair.Pair:
		return fmt.Sprintf("protected, epoch %d", b.Epoch)
	}
	return "stopped"
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
