package kernel_test

import (
	"bufio"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/binary"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/nested"
)

//go:embed duet.config
var fragment string

const limit = 16 << 20

// Offsets in a bzImage's header: Documentation/arch/x86/boot.rst.
const (
	headerMagic = 0x202
	xloadflags  = 0x236
)

func TestVmlinuzBootsByEFI(t *testing.T) {
	b, err := os.ReadFile("vmlinuz")
	if os.IsNotExist(err) {
		t.Skip("no vmlinuz beside the test, so this is the test inside of QEMU")
	}
	check(t, err)
	if len(b) < 1<<20 || len(b) > limit {
		t.Fatalf("vmlinuz has %d bytes, want 1 to 16 MiB", len(b))
	}
	// Bits 0 and 3: entered in 64-bit mode, and from 64-bit EFI firmware.
	if flags := binary.LittleEndian.Uint16(b[xloadflags:]); string(b[headerMagic:headerMagic+4]) != "HdrS" || flags&9 != 9 {
		t.Errorf("vmlinuz is no 64-bit kernel with an EFI stub: magic %q, flags %#x", b[headerMagic:headerMagic+4], flags)
	}
}

// TestRunningConfig compares the fragment with what the running kernel says it
// was built from, so that a fragment which nobody has built is noticed.
func TestRunningConfig(t *testing.T) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	check(t, err)
	if !strings.HasSuffix(strings.TrimSpace(string(release)), "-duet") {
		t.Skip("this host doesn't run our kernel; TestInQEMU runs this test where one does")
	}
	f, err := os.Open("/proc/config.gz")
	check(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	check(t, err)
	running := map[string]bool{}
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		running[lines.Text()] = true
	}
	check(t, lines.Err())
	for line := range strings.Lines(fragment) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "CONFIG_") && !running[line] {
			t.Errorf("duet.config has %s, vmlinuz doesn't: rebuild it by build.sh", line)
		}
	}
}

// TestInQEMU runs the other tests in a host of QEMU's that runs vmlinuz.
func TestInQEMU(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine in QEMU")
	}
	if _, err := os.Stat("vmlinuz"); err != nil {
		t.Skip("no vmlinuz beside the test, so this is the test inside of QEMU")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU: apt-get install qemu-system-x86")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	check(t, nested.Run(ctx, t.TempDir(), nested.Config{
		Kernel: "vmlinuz", Package: ".", MemoryMiB: 512,
		Args: []string{"-test.v", "-test.run=^(TestTimeStamps|TestTraps.*|TestSingleSteps.*|TestSystemCalls.*|TestFirstWrites.*|TestRunningConfig)$"},
		Log:  t.Output(),
	}))
}
