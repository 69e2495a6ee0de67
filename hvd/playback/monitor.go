package playback

import (
	"fmt"
	"strconv"
	"strings"
)

const monitorHelp = `monitor position     where the execution is
monitor goto N       go to position N, forwards or backwards (then: maintenance flush register-cache)
monitor run N        execute N exits more
monitor checkpoints  what going back costs`

// Monitor implements gdb.Target.
func (d *Debugger) Monitor(line string) string {
	name, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	n, err := strconv.ParseUint(strings.TrimSpace(arg), 10, 64)
	switch {
	case name == "position" && arg == "":
		return d.where()
	case name == "checkpoints" && arg == "":
		h := d.p.history
		return fmt.Sprintf("%d checkpoints of %d bytes, one each %d exits", len(h.points), h.held, h.every)
	case name == "goto" && err == nil && n >= d.p.Start && n <= d.to:
		if err := d.goTo(point{exit: n}); err != nil {
			return err.Error()
		}
		return d.where()
	case name == "run" && err == nil:
		if err := d.run(n); err != nil {
			return err.Error()
		}
		return d.where()
	}
	return monitorHelp
}

// Breakable implements gdb.Target.
func (d *Debugger) Breakable(addr uint64) bool { return d.p.Machine.Breakable(addr) }

func (d *Debugger) where() string {
	return fmt.Sprintf("%v; guest time %.9f s", d.at, float64(d.p.Machine.Clock())/1e9)
}

// run executes some exits.
func (d *Debugger) run(exits uint64) error {
	d.deaf = true
	defer func() { d.deaf = false }()
	for range exits {
		if o, err := d.once(false, nil); err != nil || o != exited {
			return err
		}
	}
	return nil
}
