package daemon

import (
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/volume"
)

// TestDamageIsRepaired damages a sector of one copy of the VM definitions: the daemon goes on by the other copy, repairs
// the first, and says so once.
func TestDamageIsRepaired(t *testing.T) {
	h := newHost(t, goodConfig)
	v, ctx := h.format(t), deadline(t)
	if _, err := define.Create(ctx, v, definition("db", 64)); err != nil {
		t.Fatal(err)
	}
	s, p := h.mem.Session("tool"), make([]byte, 512)
	const lba = (2<<20 + 4096) / 512 // the JSON of copy 1
	if err := s.Read(ctx, lba, p); err != nil || !strings.Contains(string(p), `"vms"`) {
		t.Fatalf("block %d holds %q, %v", lba, p, err)
	}
	p[40] ^= 8
	if err := s.Write(ctx, lba, p); err != nil {
		t.Fatal(err)
	}
	h.start(t)
	c := h.client(t, "s3cret")
	const line = "volume's VM definitions, copy 1 was repaired from an undamaged copy; it was: checksum of VM definitions: damaged"
	h.eventually(t, "the repair is told", func() bool { return h.count(line) > 0 })
	if list, err := c.VMs(ctx); err != nil || len(list) != 1 {
		t.Errorf("VMs %+v, %v", list, err)
	}
	if got, err := volume.Inspect(ctx, s); err != nil || got.Damaged() || got.Err != nil {
		t.Errorf("after the repair: %+v, %v", got, err)
	}
	events, err := c.Events(ctx)
	told := 0
	for _, e := range events {
		if e.What == line {
			told++
		}
	}
	if err != nil || told != 1 {
		t.Errorf("told %d times (%v)", told, err)
	}
}
