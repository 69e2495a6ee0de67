package boot

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestACPITables(t *testing.T) {
	got := hex.Dump(acpiTables())
	golden := filepath.Join("testdata", "acpi.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
}

// TestACPIDisassembles asks ACPICA's compiler, which knows the specification,
// what it makes of the tables.
func TestACPIDisassembles(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("acpica-tools isn't installed")
	}
	dir := t.TempDir()
	b := acpiTables()
	for signature, words := range map[string][]string{
		"DSDT": {`EisaId ("PNP0A03")`, `Name (\_S5`, "0xFEBFFFFF", "DWordMemory", "0x0CF8"},
		"FACP": {"PM1A Event Block Address : 00000600", "PM1A Control Block Address : 00000604", "PM Timer Block Address : 00000608", "Control Method Power Button (V1) : 0", "Value to cause reset : 06"},
		"APIC": {"Local Apic Address : FEE00000", "PC-AT Compatibility : 1", "Processor Enabled : 1"},
	} {
		i := bytes.Index(b, []byte(signature))
		if i < 0 {
			t.Fatalf("no %s", signature)
		}
		file := filepath.Join(dir, signature+".dat")
		if err := os.WriteFile(file, b[i:i+int(le.Uint32(b[i+4:]))], 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(iasl, "-d", file).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", signature, err, out)
		}
		text, err := os.ReadFile(filepath.Join(dir, signature+".dsl"))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range words {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s: no %q in\n%s", signature, w, text)
			}
		}
		if strings.Contains(string(out)+string(text), "ncorrect") {
			t.Errorf("%s: wrong checksum or length\n%s", signature, out)
		}
	}
}
