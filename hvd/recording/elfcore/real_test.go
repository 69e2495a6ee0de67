package elfcore

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRealGDB has GDB open a core.
func TestRealGDB(t *testing.T) {
	gdb, err := exec.LookPath("gdb")
	if err != nil {
		t.Skip("gdb is missing: install the package gdb")
	}
	memory := make([]byte, 4*pageSize)
	copy(memory[pageSize:], "memory of the guest")
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = Write(f, Core{
		Registers: Registers{RIP: 0xffffffff81001234, RSP: 0xffffc90000001000, CS: 0x10, RFLAGS: 0x246},
		Memory:    []Region{{0, memory}},
		Mappings:  []Mapping{{0xffff888000000000, 0, 4 * pageSize}},
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), gdb, "-nx", "-batch", "-c", path,
		"-ex", "p/x $rip", "-ex", "p/x $rsp", "-ex", "x/s 0xffff888000001000").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"= 0xffffffff81001234\n", "= 0xffffc90000001000\n", `"memory of the guest"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
