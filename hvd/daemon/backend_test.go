package daemon

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/journal"
	"github.com/duet-ft/duet/hvd/daemon/supervise"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/volume"
)

// TestRoleWithoutProcess looks at a VM whose process doesn't answer: the roles aren't words of the protocol's.
func TestRoleWithoutProcess(t *testing.T) {
	d := &instance{opt: Options{Log: func(string) {}}, events: journal.Memory(), said: map[string]string{}}
	d.fleet = newFleet(d)
	v := &vm{name: "db", sock: vmsock.New(t.TempDir()), def: volume.Definition{Output: volume.OutputVerified}}
	want := func(what, role, fault string) {
		t.Helper()
		got, wanted := d.look(t.Context(), v), api.VM{Name: "db", Output: volume.OutputVerified, Role: role, Error: fault}
		if got != wanted {
			t.Errorf("%s: %+v, want %+v", what, got, wanted)
		}
	}
	want("not started yet", "waiting", "")
	d.fleet.changed(v, supervise.Change{Running: true, PID: 1})
	want("started a moment ago", "waiting", "")
	d.fleet.changed(v, supervise.Change{Reason: "exit status 1", Last: "no disk", Again: time.Second})
	want("ended", "failed", "no disk")
	d.fleet.changed(v, supervise.Change{Running: true, PID: 2})
	want("started again", "waiting", "no disk")
	v.blocked = "too little memory"
	want("never to be started", "failed", "too little memory")
}

// TestAnswersBeforeItsStartIsTold lets a process serve its socket before the daemon has heard that it was started.
func TestAnswersBeforeItsStartIsTold(t *testing.T) {
	d := &instance{opt: Options{Log: func(string) {}}, events: journal.Memory(), said: map[string]string{}, seen: true}
	d.fleet = newFleet(d)
	dir := t.TempDir()
	v := &vm{name: "db", dir: dir, sock: vmsock.New(dir)}
	d.fleet.vms["db"] = v
	fails := func(want string) {
		t.Helper()
		var e *api.Error
		if _, err := d.Forward(t.Context(), "db", "POST", "/start"); !errors.As(err, &e) || e.Status != 503 || e.Line != want {
			t.Errorf("without a process: %v, want %q", err, want)
		}
		if _, err := d.Console(t.Context(), "db"); !errors.As(err, &e) || e.Status != 503 || e.Line != want {
			t.Errorf("its console: %v, want %q", err, want)
		}
	}
	fails("VM db: the VM's process is not up")
	d.fleet.changed(v, supervise.Change{Reason: "exit status 1", Last: "no disk"})
	fails("VM db: no disk")

	l, err := net.Listen("unix", filepath.Join(dir, vmsock.APIName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	if r, err := d.Forward(t.Context(), "db", "POST", "/start"); err != nil || string(r.Body) != "/v1/vm/start" {
		t.Errorf("Forward: %q, %v", r.Body, err)
	}
}
