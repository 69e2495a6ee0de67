package torture

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestImage: guest.bin is what guest.S gives.
func TestImage(t *testing.T) {
	for _, tool := range []string{"as", "objcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: install the package binutils", tool)
		}
	}
	dir := t.TempDir()
	object, binary := filepath.Join(dir, "guest.o"), filepath.Join(dir, "guest.bin")
	for _, args := range [][]string{
		{"as", "--64", "-o", object, "guest.S"},
		{"objcopy", "-O", "binary", "-j", ".text", object, binary},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	want, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, image) {
		t.Errorf("guest.bin isn't what guest.S gives: assemble it as guest.S says at its top")
	}
}

// TestDense: the plans of a set cover each place exactly once, and Next finds
// what At says.
func TestDense(t *testing.T) {
	for _, every := range []uint64{1, 2, 7} {
		hits := make([]int, 100)
		for _, p := range Dense(Exits, Timer, every) {
			for n := range uint64(100) {
				if p.At(n) {
					hits[n]++
				}
				want := n + 1
				for !p.At(want) {
					want++
				}
				if got, ok := p.Next(n); !ok || got != want {
					t.Fatalf("%v: Next(%d) = %d, %t, want %d", p, n, got, ok, want)
				}
			}
		}
		for n, h := range hits {
			if h != 1 {
				t.Errorf("every %d: place %d is hit %d times", every, n, h)
			}
		}
	}
}

func TestSparse(t *testing.T) {
	set := Sparse(Traps, Frame, 5)
	if len(set) != 5 {
		t.Fatalf("%d plans, want 5", len(set))
	}
	for i, p := range set {
		for n := range uint64(10) {
			if p.At(n) != (n == uint64(i)) {
				t.Errorf("%v acts at %d: %t", p, n, p.At(n))
			}
		}
		if _, more := p.Next(uint64(i)); more {
			t.Errorf("%v acts twice", p)
		}
	}
	for a := range Actions {
		if got := len(a.Inputs(3)); got == 0 != (a == Resync) {
			t.Errorf("%v gives %d inputs", a, got)
		}
	}
}
