package daemon

import (
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
