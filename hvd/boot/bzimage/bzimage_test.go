package bzimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// image wraps a packed payload, whose last four bytes are its unpacked size,
// into a bzImage.
func image(payload []byte) []byte {
	const sectors, gap = 2, 64
	b := make([]byte, (sectors+1)*512+gap, (sectors+1)*512+gap+len(payload)+8)
	b[0x1f1] = sectors
	b[0x1fe], b[0x1ff] = 0x55, 0xaa
	b[0x201] = 0x6a
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint32(b[0x248:], gap)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(append(b, payload...), make([]byte, 8)...)
}

// fakeELF makes bytes that look like machine code to the branch filter: a
// third of them calls and jumps, their operands overlapping at times.
func fakeELF(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		switch r.IntN(8) {
		case 0:
			b[i] = 0xe8 + byte(r.IntN(2))
		case 1, 2:
			b[i] = 0
		case 3:
			b[i] = 0xff
		default:
			b[i] = byte(r.Uint32())
		}
	}
	copy(b, "\x7fELF")
	return b
}

// pack runs a compression program as scripts/Makefile.lib of the kernel does.
func pack(t *testing.T, data []byte, name string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s isn't installed", name)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return out
}

func withSize(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(size))
}

func TestUnpackEachCompression(t *testing.T) {
	elf := fakeELF(300_000)
	for _, c := range []struct {
		args string
		size bool // the size is appended
	}{
		{"gzip -n -9", false},
		{"bzip2 -9", true},
		{"xz --format=lzma -9", true},
		{"xz --check=crc32 --lzma2=preset=6,dict=1MiB", true},
		{"xz --check=crc32 --x86 --lzma2=preset=6,dict=32MiB", true},
		{"zstd -19", true},
		{"zstd -22 --ultra --long=27", true},
		{"lz4 -l -9 - -", true},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := strings.Fields(c.args)
			packed := pack(t, elf, args[0], args[1:]...)
			if c.size {
				packed = withSize(packed, len(elf))
			}
			img := image(packed)
			got, err := Unpack(img)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, elf) {
				t.Fatal("unpacked bytes differ")
			}
			if !c.size {
				return
			}
			long := image(withSize(packed[:len(packed)-4], len(elf)+1))
			if _, err := Unpack(long); !errors.Is(err, ErrDamaged) {
				t.Errorf("a byte less than promised: %v", err)
			}
			half := image(withSize(packed[:len(packed)/2], len(elf)))
			if _, err := Unpack(half); !errors.Is(err, ErrDamaged) {
				t.Errorf("half a payload: %v", err)
			}
		})
	}
}

func TestLZ4OfSeveralBlocks(t *testing.T) {
	elf := bytes.Repeat(fakeELF(1<<20), 9)
	packed := pack(t, elf, "lz4", "-l", "-1", "-", "-")
	got, err := Unpack(image(withSize(packed, len(elf))))
	if err != nil || !bytes.Equal(got, elf) {
		t.Fatalf("differs, or %v", err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	old := image(make([]byte, 100))
	le.PutUint16(old[0x206:], 0x207)
	far := image(make([]byte, 100))
	le.PutUint32(far[0x24c:], 1<<31)
	huge := image(append([]byte("\x1f\x8b\x08"), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"empty", nil, ErrFormat},
		{"text", bytes.Repeat([]byte("hello "), 1000), ErrFormat},
		{"old protocol", old, ErrFormat},
		{"payload beyond the end", far, ErrDamaged},
		{"unknown compression", image([]byte("whatever it is\x10\x00\x00\x00")), ErrFormat},
		{"4 GiB unpacked", huge, ErrDamaged},
	} {
		if _, err := Unpack(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestHeaderEndsWhereItSays(t *testing.T) {
	if h := Header(image(make([]byte, 100))); len(h) != 0x202+0x6a-0x1f1 {
		t.Errorf("header of %d bytes", len(h))
	}
	if h := Header(fakeELF(2000)); h != nil {
		t.Errorf("a bare ELF file has a header of %d bytes", len(h))
	}
}

// TestUnpackInstalledKernels takes whatever kernels this machine has: none in a
// container, the real thing elsewhere.
func TestUnpackInstalledKernels(t *testing.T) {
	list, _ := filepath.Glob("/boot/vmlinuz-*")
	if k := os.Getenv("DUET_TEST_KERNEL"); k != "" {
		list = append(list, k)
	}
	if len(list) == 0 {
		t.Skip("no /boot/vmlinuz-* here; DUET_TEST_KERNEL names another")
	}
	for _, name := range list {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Log(err)
			continue
		}
		elf, err := Unpack(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Logf("%s: %d bytes, %d unpacked", name, len(b), len(elf))
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(image(withSize([]byte("\x02\x21\x4c\x18\x05\x00\x00\x00\x40\x7fELF"), 4)))
	f.Add(image(withSize([]byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x02\x01\x04\x00\x21\x01\x16\x00\x00\x00\x00\x00\x01\x00\x00"), 4)))
	f.Add(image(withSize([]byte("\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00"), 4)))
	f.Add(image(withSize([]byte("\x28\xb5\x2f\xfd\x00\x58\x21\x00\x00\x7fELF"), 4)))
	f.Add(image(withSize([]byte("BZh91AY&SY"), 4)))
	f.Add(image([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x4b\x05\x00\x01\x02\x03\x04\x04\x00\x00\x00")))
	f.Fuzz(func(t *testing.T, b []byte) {
		elf, err := Unpack(b)
		if err == nil && !IsELF(elf) {
			t.Fatal("no error, and no ELF file")
		}
		Header(b)
	})
}
