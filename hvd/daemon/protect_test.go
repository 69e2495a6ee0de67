package daemon

import (
	"errors"
	"testing"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/volume"
)

// TestProtection has a VM run unprotected, here and by the other host. It is kept on the volume, and each process is told.
func TestProtection(t *testing.T) {
	h := newHost(t, goodConfig)
	v := h.format(t)
	h.join(t)
	h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	h.eventually(t, "VM db is made", func() bool {
		_, err := c.Create(ctx, definition("db", 512))
		return err == nil
	})
	var state api.VM
	runs := func() bool {
		var err error
		state, err = c.VM(ctx, "db")
		return err == nil && state.Live
	}
	h.eventually(t, "VM db runs", runs)
	if state.Unprotected {
		t.Error("a new VM is to run unprotected")
	}
	state, err := c.Unprotect(ctx, "db")
	if err != nil || !state.Unprotected {
		t.Fatalf("unprotect: %+v, %v", state, err)
	}
	if def, err := v.Definition(ctx, "db"); err != nil || !def.Unprotected {
		t.Errorf("the volume has %+v (%v)", def, err)
	}
	h.eventually(t, "its process is told", func() bool { return h.count("vm db: told to unprotect") == 1 })

	first := state.Epoch // its PID
	_ = c.Shutdown(ctx, "db")
	h.eventually(t, "the next process is told", func() bool { return h.count("vm db: told to unprotect") == 2 })
	if !runs() || state.Epoch == first || !state.Unprotected {
		t.Errorf("after a restart: %+v", state)
	}
	told := h.count("vm db: told to protect")
	if err := v.Modify(ctx, "db", func(d *volume.Definition) { d.Unprotected = false }); err != nil { // as the other host does
		t.Fatal(err)
	}
	h.eventually(t, "its process is told what the other host wrote", func() bool {
		return h.count("vm db: told to protect") == told+1 && runs() && !state.Unprotected
	})
	var e *api.Error
	if _, err := c.Unprotect(ctx, "web"); !errors.As(err, &e) || e.Status != 404 {
		t.Errorf("a VM that isn't there: %v", err)
	}
}
