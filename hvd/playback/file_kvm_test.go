package playback

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
)

// tapeDisk is where image/boottest puts a recording.
const tapeDisk = "/dev/vda"

// TestReplayFile runs the commands on a recording that was made by the API: all
// of it replays, and its core is one.
func TestReplayFile(t *testing.T) {
	kvmtest.Open(t)
	if _, err := os.Stat(tapeDisk); err != nil {
		t.Skip("needs a host with a recording at ", tapeDisk)
	}
	var out bytes.Buffer
	if err := Log([]string{tapeDisk, "--summary"}, &out); err != nil {
		t.Fatal(err)
	}
	core := t.TempDir() + "/core"
	err := Replay(t.Context(), []string{"--core", core, tapeDisk}, &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "fingerprints compared") {
		t.Error("there is no summary")
	}
	checkCore(t, core)
}

// checkCore opens a core and looks the kernel up where its registers say.
func checkCore(t *testing.T, path string) {
	t.Helper()
	c, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	notes := make([]byte, c.Progs[0].Filesz)
	if _, err := c.Progs[0].ReadAt(notes, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(notes, []byte("OSRELEASE=")) {
		t.Error("the core has no VMCOREINFO")
	}
	rip := binary.LittleEndian.Uint64(notes[20+112+16*8:])
	for _, p := range c.Progs {
		if p.Type == elf.PT_LOAD && rip >= p.Vaddr && rip-p.Vaddr < p.Memsz {
			t.Logf("%d segments; RIP %#x is at physical %#x", len(c.Progs), rip, p.Paddr+rip-p.Vaddr)
			return
		}
	}
	t.Errorf("nothing is mapped at RIP %#x, in %d segments", rip, len(c.Progs))
}
