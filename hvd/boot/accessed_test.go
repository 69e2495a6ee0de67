package boot

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
)

// loaded is memory with a kernel in it.
func loaded(t *testing.T, kernel []byte, o Options) ([]byte, Accessed) {
	t.Helper()
	m, err := mem.New(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	e, err := Load(m, &Image{Kernel: kernel, Root: "root=x"}, o)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(m.Bytes()), e.Accessed
}

// TestAccessed loads the hosts' own kernel, changed and not.
func TestAccessed(t *testing.T) {
	kernel, err := os.ReadFile("../../image/kernel/vmlinuz")
	if err != nil {
		t.Fatal(err)
	}
	plain, a := loaded(t, kernel, Options{Untouched: true})
	if a.State != Untouched || !strings.Contains(a.String(), "as the VM's definition says: divergences by reclaim are possible") {
		t.Errorf("%v", a)
	}
	elf, err := Unpack(kernel)
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := segments(elf)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if !bytes.Equal(plain[s.addr:s.addr+uint64(len(s.data))], s.data) {
			t.Errorf("the segment at %#x isn't as it was", s.addr)
		}
	}
	changed, a := loaded(t, kernel, Options{})
	if a.State != Steady || a.String() != "steady: reclaim doesn't depend on accessed bits" {
		t.Errorf("%v", a)
	}
	var at []int
	for i := range plain {
		if plain[i] != changed[i] {
			at = append(at, i)
		}
	}
	// Five functions of three bytes, two calls of five, five masks of a fork.
	if len(at) < 5*2 || len(at) > 5*3+2*5+5 || at[0] < 0x1000000 || at[len(at)-1] > 0x1400000 {
		t.Errorf("bytes that differ: %#x", at)
	}
	again, _ := loaded(t, kernel, Options{})
	if !bytes.Equal(changed, again) {
		t.Error("two loads differ")
	}
}

func TestAccessedUnknown(t *testing.T) {
	memory, a := loaded(t, vmlinux(), Options{})
	if a.State != Unknown || !strings.Contains(a.String(), "has no symbol table") ||
		!strings.HasSuffix(a.String(), "; divergences by reclaim are possible; verified output keeps them harmless") ||
		strings.Contains(a.String(), "\n") {
		t.Errorf("%v", a)
	}
	if untouched, _ := loaded(t, vmlinux(), Options{Untouched: true}); !bytes.Equal(memory, untouched) {
		t.Error("a kernel that isn't known was changed")
	}
	if (Accessed{}).String() != "" {
		t.Error("something is said where nothing is known")
	}
}
