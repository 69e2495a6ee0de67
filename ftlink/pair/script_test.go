package pair

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs the scripts in testdata/scripts. One block of commands, one a line:
//
//	level received           before anything is started
//	start H                  a new process on host H (a, b)
//	kill H                   its process dies without a word
//	run D                    time passes
//	quiet D                  the same, without a trace
//	cut PATH [H]             direct, management or both; H: only what H sends
//	heal                     all paths are whole
//	volume H down|up
//	lose-reply H             H's next swap takes place, but nobody tells it
//	slow H D                 H's arbiter operations take D longer
//	pause H D                the process of H does nothing for D
//	seed-takes H D, consume-takes H D, pause-takes H D, register-takes H D
//	command H start|stop|force|switchover|test-failover|drain|undrain|unprotect|protect
//	fault H crashed|diverged|shutdown|lagging|refused|unbootable
//	state                    roles, guests, gates and the block
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		w := newWorld()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w.trace.Reset()
			args := make([]string, 0, len(d.CmdArgs)+1)
			args = append(args, d.Cmd)
			for _, a := range d.CmdArgs {
				args = append(args, a.Key)
			}
			if err := w.command(args); err != nil {
				d.Fatalf(t, "%v", err)
			}
			return w.trace.String()
		})
	})
}

func (w *world) host(args []string) (*host, error) {
	if len(args) < 2 || len(args[1]) != 1 || args[1] < "a" || args[1] > "b" {
		return nil, fmt.Errorf("%v: want host a or b", args)
	}
	return w.hosts[args[1][0]-'a'], nil
}

func (w *world) command(args []string) error {
	switch args[0] {
	case "level":
		w.level = LevelReceived
		return nil
	case "run", "quiet":
		d, err := time.ParseDuration(args[1])
		w.run(w.now + d)
		if args[0] == "quiet" {
			w.trace.Reset()
		}
		return err
	case "cut":
		return w.cutPath(args[1:])
	case "heal":
		w.cut = [2][2]bool{}
		w.connect()
		return nil
	case "state":
		w.trace.WriteString(w.state())
		return nil
	}
	h, err := w.host(args)
	if err != nil {
		return err
	}
	return h.command(args[0], args[2:])
}

var verbs = map[string]Verb{
	"start": Start, "stop": Stop, "force": ForceStart, "switchover": Switchover, "test-failover": TestFailover,
	"drain": Drain, "undrain": Undrain, "unprotect": Unprotect, "protect": Protect,
}

func (w *world) cutPath(args []string) error {
	for p := range paths {
		for i, h := range w.hosts {
			if (args[0] == "both" || args[0] == p.String()) && (len(args) == 1 || args[1] == h.name()) {
				w.cut[p][i] = true
			}
		}
	}
	return nil
}

// wake lets a process go on that did nothing for a while, and finds what became of its stream.
func (h *host) wake(m *Machine) {
	h.m = m
	if !h.streamUp {
		h.step(m, LinkDown{})
		h.w.after(20*time.Millisecond, h.w.connect)
	}
	h.tick(m)
}

func (h *host) command(cmd string, args []string) error {
	var d time.Duration
	switch cmd {
	case "slow", "pause", "seed-takes", "consume-takes", "pause-takes", "register-takes":
		var err error
		if d, err = time.ParseDuration(args[0]); err != nil {
			return err
		}
	}
	switch cmd {
	case "start":
		return h.start()
	case "kill":
		h.m = nil
	case "volume":
		h.volumeDown = args[0] == "down"
	case "lose-reply":
		h.loseReply = true
	case "slow":
		h.slow = d
	case "pause":
		m := h.m
		h.m = nil
		h.w.after(d, func() { h.wake(m) })
	case "seed-takes":
		h.seedFor = d
	case "consume-takes":
		h.consumeFor = d
	case "pause-takes":
		h.pauseFor = d
	case "register-takes":
		h.registerFor = d
	case "command":
		h.step(h.m, Command{verbs[args[0]]})
	case "fault":
		h.step(h.m, Faulted{map[string]Fault{
			"crashed": Crashed, "diverged": Diverge, "shutdown": Shutdown, "lagging": Lagging, "refused": Refused,
			"unbootable": Unbootable,
		}[args[0]]})
	default:
		return fmt.Errorf("unknown command %q", cmd)
	}
	return nil
}
