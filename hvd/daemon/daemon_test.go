package daemon

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/api/console"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/daemon/journal"
	"github.com/duet-ft/duet/hvd/daemon/supervise"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/volume"
	"github.com/google/go-cmp/cmp"
)

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func definition(name string, memory int) volume.Definition {
	return volume.Definition{
		Name: name, Slot: volume.AutoSlot, MemoryMiB: memory,
		Disks: []volume.DiskDef{{Name: "root", SizeBytes: 1 << 20}},
	}
}

// TestLife makes a VM by the API, uses it, sees it crash, and removes it.
func TestLife(t *testing.T) {
	h := newHost(t, goodConfig)
	v := h.format(t)
	h.join(t)
	h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	h.eventually(t, "no VMs", func() bool {
		list, err := c.VMs(ctx)
		return err == nil && len(list) == 0
	})
	if _, err := c.Create(ctx, definition("db", 512)); err != nil {
		t.Fatal(err)
	}
	var state api.VM
	runs := func() bool {
		var err error
		state, err = c.VM(ctx, "db")
		return err == nil && state.Live
	}
	h.eventually(t, "VM db runs", runs)
	if state.Name != "db" || state.Role != "primary" {
		t.Errorf("VM db: %+v", state)
	}
	if text, err := c.Console(ctx, "db"); err != nil || string(text) != "db login: " {
		t.Errorf("console: %q, %v", text, err)
	}
	if err := c.Start(ctx, "db"); err == nil || err.Error() != "it runs already" {
		t.Errorf("start: %v, want the process' own refusal", err)
	}
	if err := c.Stop(ctx, "db"); err != nil {
		t.Errorf("stop: %v", err)
	}
	useDrain(t, h, c)
	useStreams(t, c)
	useConsole(t, h, c)

	first := state.Epoch // its PID
	if err := c.Shutdown(ctx, "db"); err == nil {
		t.Error("shutdown: no error although the process died")
	}
	h.eventually(t, "VM db runs again", func() bool {
		// The process may answer before the daemon says that it started it.
		return runs() && state.Epoch != first && h.count(fmt.Sprintf("VM db: process %d started", state.Epoch)) == 1
	})
	if h.count("VM db: process ended (exit status 3), starts again at once") != 1 ||
		h.count("vm db: this VM crashes") != 1 {
		t.Errorf("the crash isn't told: %q", h.lines)
	}
	checkEvents(t, h, c)
	remove(t, h, c, v, int(state.Epoch))
}

// useDrain drains the host, which is kept in a file and told to the process, and ends that again.
func useDrain(t *testing.T, h *host, c *api.Client) {
	t.Helper()
	ctx := deadline(t)
	for _, on := range []bool{true, false, false} {
		call, line := c.Drain, "vm db: told to drain"
		if !on {
			call, line = c.Undrain, "vm db: told to undrain"
		}
		state, err := call(ctx)
		if err != nil || state.Drained != on || strings.Contains(state.Trouble, "drained") != on {
			t.Errorf("drained %t: %+v, %v", on, state, err)
		}
		_, err = os.Stat(filepath.Join(filepath.Dir(h.opt.Config), "drained"))
		if (err == nil) != on {
			t.Errorf("drained %t: its file: %v", on, err)
		}
		h.eventually(t, line, func() bool { return h.count(line) == 1 })
	}
}

func useStreams(t *testing.T, c *api.Client) {
	t.Helper()
	ctx := deadline(t)
	conn, err := c.Vsock(ctx, "db", 7)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "ping")
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "ping" {
		t.Errorf("the echo on port 7 is %q (%v)", b, err)
	}
	if _, err := c.Vsock(ctx, "db", 8); err == nil || err.Error() != "VM db: nothing listens on vsock port 8 of the guest" {
		t.Errorf("port 8: %v", err)
	}
	if _, err := c.Vsock(ctx, "nope", 7); err == nil || err.Error() != `there is no VM "nope"` {
		t.Errorf("a VM that isn't there: %v", err)
	}
}

// useConsole types at the console of the process, through daemon and API, and at one of a guest that runs elsewhere.
func useConsole(t *testing.T, h *host, c *api.Client) {
	t.Helper()
	ctx := deadline(t)
	conn, err := c.OpenConsole(ctx, "db")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	conn.Write(console.Frame{Kind: console.Resume}.Append(nil))
	conn.Write(console.Frame{Kind: console.Input, Data: []byte("root\r")}.Append(nil))
	var kinds []console.Kind
	var shown []byte
	for len(shown) < len("db login: ROOT\r") || !slices.Contains(kinds, console.Taken) {
		f, err := console.Read(conn)
		if err != nil {
			t.Fatalf("after %v, %q: %v", kinds, shown, err)
		}
		kinds = append(kinds, f.Kind)
		shown = append(shown, f.Data...)
		if f.Kind == console.Taken && (f.A != 5 || f.B != 5) {
			t.Errorf("%d bytes are typed, %d of ours", f.A, f.B)
		}
	}
	if string(shown) != "db login: ROOT\r" || kinds[0] != console.Hello {
		t.Errorf("%v show %q", kinds, shown)
	}
	if text, err := c.Console(ctx, "db"); err != nil || string(text) != "db login: ROOT\r" {
		t.Errorf("the last output: %q, %v", text, err)
	}
	if _, err := c.OpenConsole(ctx, "nope"); err == nil || err.Error() != `there is no VM "nope"` {
		t.Errorf("the console of a VM that isn't there: %v", err)
	}
	if err := os.Remove(filepath.Join(h.opt.RunDir, "db", vmsock.ConsoleName)); err != nil {
		t.Fatal(err)
	}
	var e *api.Error
	if _, err := c.OpenConsole(ctx, "db"); !errors.As(err, &e) || e.Status != 409 || e.Line != "VM db doesn't run on this host" {
		t.Errorf("the console of a VM that runs elsewhere: %v", err)
	}
}

// checkEvents expects the daemon's and the VM's events, merged, with no lies about whose they are, and in the file.
func checkEvents(t *testing.T, h *host, c *api.Client) {
	t.Helper()
	list, err := c.Events(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for i, e := range list {
		if i > 0 && e.At.Before(list[i-1].At) {
			t.Errorf("event %q is before its predecessor", e.What)
		}
		words := strings.Fields(e.What)
		got[strings.TrimSpace(e.VM+" "+words[len(words)-1])]++
	}
	// The first process' event may be missing: a crash takes along what nobody has asked for yet.
	if n := got["db live"]; n == 2 {
		got["db live"] = 1
	}
	want := map[string]int{"1": 1, "db disks": 1, "db zeros": 1, "db started": 2, "here": 1, "drained": 1, "db crashes": 1, "db live": 1}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("events by their last words (-want +got):\n%s", d)
	}
	h.eventually(t, "all events are in the file", func() bool {
		b, err := os.ReadFile(h.opt.Events)
		return err == nil && strings.Count(string(b), "\n") == len(list)
	})
	if n := h.count("vm db: primary: went live"); n != 2 {
		t.Errorf("%d lines in the log of two events", n)
	}
	only, err := c.EventsSince(deadline(t), list[1].At, "db")
	if err != nil || len(only) == 0 || len(only) >= len(list) || only[0].VM != "db" || only[0].Host != "a" {
		t.Errorf("of VM db, from the second event on: %+v, %v", only, err)
	}
}

// remove expects that a VM which may run isn't deleted, and that its process goes with it.
func remove(t *testing.T, h *host, c *api.Client, v *volume.Volume, pid int) {
	t.Helper()
	ctx := deadline(t)
	def, err := v.Definition(ctx, "db")
	if err != nil {
		t.Fatal(err)
	}
	id, err := volume.ParseGUID(def.UUID)
	if err != nil {
		t.Fatal(err)
	}
	x := arbiter.Executor{Blocks: v.Blocks(), LBA: v.ArbiterLBA(def.Slot), Size: 512, VM: pair.UUID(id)}
	free, err := x.Read(ctx)
	if err != nil || free.Kind != pair.Free {
		t.Fatalf("the arbiter block of a new VM is %v, %v", free, err)
	}
	solo := pair.Block{VM: free.VM, Kind: pair.Solo, Epoch: free.Epoch + 1, Owner: 1, Nonce: pair.Nonce{Incarnation: 1, N: 1}}
	put := func(b pair.Block) {
		t.Helper()
		if err := v.Blocks().Write(ctx, x.LBA, arbiter.Encode(b, x.Size)); err != nil {
			t.Fatal(err)
		}
	}
	put(solo)
	var e *api.Error
	if err := c.Delete(ctx, "db"); !errors.As(err, &e) || e.Status != 409 || e.Line != "VM db isn't stopped: stop it first" {
		t.Errorf("deleting a VM that runs: %v", err)
	}
	solo.Kind, solo.Owner, solo.Epoch = pair.Free, 0, solo.Epoch+1
	put(solo)
	if err := c.Delete(ctx, "db"); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx, "db"); !errors.As(err, &e) || e.Status != 404 {
		t.Errorf("deleting it twice: %v", err)
	}
	h.eventually(t, "its process is gone", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	h.eventually(t, "its directory is gone", func() bool {
		_, err := os.Stat(filepath.Join(h.opt.RunDir, "db"))
		return errors.Is(err, os.ErrNotExist)
	})
}

// TestFollowsTheVolume sees VMs that the other host makes and removes.
func TestFollowsTheVolume(t *testing.T) {
	h := newHost(t, goodConfig)
	v := h.format(t)
	h.join(t)
	end := h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	pids := func(names ...string) (p []int) {
		h.eventually(t, fmt.Sprintf("the VMs are %v", names), func() bool {
			p = nil
			list, err := c.VMs(ctx)
			ok := err == nil && len(list) == len(names)
			for i := range names {
				ok = ok && list[i].Name == names[i] && list[i].Live
				if ok {
					p = append(p, int(list[i].Epoch))
				}
			}
			return ok
		})
		return p
	}
	for _, name := range []string{"x", "b"} {
		if _, err := define.Create(ctx, v, definition(name, 64)); err != nil {
			t.Fatal(err)
		}
	}
	before := pids("b", "x")
	if err := v.Delete(ctx, "b", ""); err != nil {
		t.Fatal(err)
	}
	pids("x")
	// The same name with another identity is another VM: it needs a process of its own.
	if err := v.Delete(ctx, "x", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := define.Create(ctx, v, definition("x", 64)); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, "another process for x", func() bool { return pids("x")[0] != before[1] })
	last := pids("x")[0]
	end()
	if err := syscall.Kill(last, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the VM's process outlives the daemon: %v", err)
	}
}

func TestCreateRefused(t *testing.T) {
	h := newHost(t, goodConfig)
	h.format(t)
	h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	h.eventually(t, "the volume is there", func() bool {
		_, err := c.Create(ctx, definition("first", 300))
		return err == nil
	})
	unknown := map[string]any{"name": "db", "memory_mib": 64, "disk": []string{}}
	for _, r := range []struct {
		def    any
		status int
		line   string // a part of it
	}{
		{definition("big", 2000), 400, `VM "big": memory_mib 2000 is more than this host has (1024 MiB, 300 of them other VMs')`},
		{definition("big", 725), 400, `VM "big": memory_mib 725 is more than this host has (1024 MiB, 300 of them other VMs')`},
		{definition("first", 64), 409, `VM "first": name first is taken by VM "first"`},
		{definition("First", 64), 400, `invalid VM definition`},
		{definition("neg", -5), 400, `memory_mib -5`},
		{unknown, 400, `VM "db": invalid VM definition: unknown field "disk"`},
		{[]int{1}, 400, ""},
		{definition("nodisk", 64).Disks, 400, ""},
	} {
		_, err := c.Create(ctx, r.def)
		var e *api.Error
		if !errors.As(err, &e) || e.Status != r.status || !strings.Contains(e.Line, r.line) || strings.Contains(e.Line, "\n") {
			t.Errorf("%v: error %v, want status %d, %q", r.def, err, r.status, r.line)
		}
	}
	if list, err := c.VMs(ctx); err != nil || len(list) != 1 {
		t.Errorf("there are %d VMs (%v), want 1", len(list), err)
	}
}

// TestBrokenVM has a VM whose process ends at once, each time.
func TestBrokenVM(t *testing.T) {
	h := newHost(t, goodConfig)
	v := h.format(t)
	ctx := deadline(t)
	if _, err := define.Create(ctx, v, definition("broken", 64)); err != nil {
		t.Fatal(err)
	}
	h.start(t)
	c := h.client(t, "s3cret")
	h.eventually(t, "it has failed for the second time", func() bool { return h.count("starts again in 1s") == 1 })
	state, err := c.VM(ctx, "broken")
	if err != nil || state.Role != "failed" || state.Error != "no kernel was found on disk root" {
		t.Errorf("VM broken: %+v, %v", state, err)
	}
	if err := c.Start(ctx, "broken"); err == nil || err.Error() != "VM broken: no kernel was found on disk root" {
		t.Errorf("starting it: %v", err)
	}
}

// TestEventsOutliveTheDaemon starts a daemon anew on the same directory, whose file lost its tail.
func TestEventsOutliveTheDaemon(t *testing.T) {
	h := newHost(t, goodConfig)
	h.format(t)
	end := h.start(t)
	h.client(t, "s3cret")
	end()
	f, err := os.OpenFile(h.opt.Events, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, `0badc0de {"what":"torn`)
	f.Close()
	h.start(t)
	list, err := h.client(t, "s3cret").Events(deadline(t))
	if err != nil || len(list) != 2 || list[0].What != list[1].What || list[0].Kind != api.EventProcess {
		t.Errorf("events %+v (%v), want two starts", list, err)
	}
}

// TestSameFaultIsToldOnce repeats a fault until the journal would fill with it.
func TestSameFaultIsToldOnce(t *testing.T) {
	events := journal.Memory()
	f := &fleet{d: &instance{opt: Options{Log: func(string) {}}, events: events, said: map[string]string{}}}
	v := &vm{name: "db"}
	end := func(last string, again time.Duration) {
		f.changed(v, supervise.Change{Running: true, PID: 1})
		f.changed(v, supervise.Change{Reason: "exit status 1", Last: last, Again: again})
	}
	for i, c := range []struct {
		last  string
		again time.Duration
		total int // events after it
	}{
		{"x", 0, 2},
		{"x", time.Second, 4},
		{"x", 8 * time.Second, 6},
		{"x", 16 * time.Second, 7},
		{"x", 30 * time.Second, 7},
		{"x", 30 * time.Second, 7},
		{"y", 30 * time.Second, 8},
		{"y", 30 * time.Second, 9},
		{"y", 0, 10},
		{"y", time.Second, 12},
	} {
		end(c.last, c.again)
		if n := len(events.List()); n != c.total {
			t.Fatalf("%d events after end %d (%q, pause %v), want %d", n, i, c.last, c.again, c.total)
		}
	}
	f.changed(v, supervise.Change{Running: true, PID: 1})
	f.changed(v, supervise.Change{Reason: "exit status 0", Final: true})
	if n := len(events.List()); n != 14 {
		t.Errorf("%d events after the last end, want 14", n)
	}
}

func TestKeyWithoutPerm(t *testing.T) {
	h := newHost(t, "")
	h.opt.Key = "/proc/nowhere/host.key"
	h.start(t)
	c := h.client(t, "")
	state, err := c.Host(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	key, err := hostkey.Load(filepath.Join(h.opt.RunDir, "host.key"))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%x", key.Public().(ed25519.PublicKey)); state.Key != want {
		t.Errorf("the host's key is %s, and in the run directory is %s", state.Key, want)
	}
	if h.count("host key: ") != 1 || h.count("using one that doesn't last") != 1 {
		t.Errorf("lines %q", h.lines)
	}
}
