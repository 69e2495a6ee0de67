package flash

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/duet-ft/duet/appliance/perm"
)

const imageSize = 3*Piece + 8192

// image makes a small image with the table of a host's.
func image(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	d, err := diskfs.Create(path, imageSize, diskfs.SectorSize512)
	if err != nil {
		t.Fatal(err)
	}
	g := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true}
	for i := range uint64(4) {
		g.Partitions = append(g.Partitions, &gpt.Partition{Index: int(i + 1), Start: 2048 + i*2048, End: 2048 + i*2048 + 2047, Type: gpt.LinuxFilesystem, Name: "p"})
	}
	if err := errors.Join(d.Partition(g), d.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1 << 20; i < imageSize-1<<20; i += 512 {
		b[i] = byte(i >> 9)
	}
	return b
}

// memory is a medium with faults.
type memory struct {
	data          []byte
	writeErrorAt  int64 // a write that covers this byte fails; 0: none
	changedAt     int64 // this byte reads back differently; 0: none
	wrapsAt       int64 // a stick that says it has more: writes from here on go to its start; 0: none
	order         []int64
	readsBefore   bool
	flushed, read bool
}

func (m *memory) WriteAt(b []byte, at int64) (int, error) {
	if m.writeErrorAt != 0 && at <= m.writeErrorAt && m.writeErrorAt < at+int64(len(b)) {
		return 0, errors.New("input/output error")
	}
	m.order = append(m.order, at)
	for i, c := range b {
		to := at + int64(i)
		if m.wrapsAt != 0 {
			to %= m.wrapsAt
		}
		m.data[to] = c
	}
	return len(b), nil
}

func (m *memory) ReadAt(b []byte, at int64) (int, error) {
	m.readsBefore = m.readsBefore || !m.flushed
	m.read = true
	n := copy(b, m.data[at:])
	if m.changedAt != 0 && at <= m.changedAt && m.changedAt < at+int64(n) {
		b[m.changedAt-at] ^= 4
	}
	return n, nil
}

func (m *memory) Flush() error { m.flushed = true; return nil }

func TestWrite(t *testing.T) {
	img := image(t)
	for _, room := range []int64{imageSize, imageSize + 512, imageSize + 4096*3, imageSize + Piece*2 + 1024} {
		m := &memory{data: bytes.Repeat([]byte{0xa5}, int(room))}
		var last, total int64
		err := Write(t.Context(), m, room, bytes.NewReader(img), imageSize, func(done, of int64) {
			if done < last || done > of {
				t.Errorf("progress goes from %d to %d of %d", last, done, of)
			}
			last, total = done, of
		})
		if err != nil || last != total {
			t.Fatalf("room for %d: %v; progress %d of %d", room, err, last, total)
		}
		// All is the image but for the table, which is right for this disk.
		if !bytes.Equal(m.data[perm.TableSize:imageSize-perm.BackupSize], img[perm.TableSize:imageSize-perm.BackupSize]) {
			t.Errorf("room for %d: the content differs", room)
		}
		p, err := perm.Grow(m.data[:perm.TableSize], m.data[room-perm.BackupSize:], room)
		if err != nil || len(p.Writes) != 0 {
			t.Errorf("room for %d: the table isn't made for the disk: %+v, %v", room, p, err)
		}
		if m.order[len(m.order)-1] != 0 || m.readsBefore || !m.read {
			t.Errorf("order of writes %v, read before flushed: %v", m.order, m.readsBefore)
		}
	}
}

func TestWriteTells(t *testing.T) {
	stopped, stop := context.WithCancel(context.Background())
	stop()
	for want, c := range map[string]struct {
		m    memory
		ctx  context.Context
		size int64
	}{
		"writing at byte 4194304: input/output error":                    {memory{writeErrorAt: Piece + 9}, t.Context(), imageSize},
		"between bytes 8388608 and 12582912 reads back differently":      {memory{changedAt: 2*Piece + 7}, t.Context(), imageSize},
		"the stick is bad, or smaller than it says":                      {memory{wrapsAt: 2 * Piece}, t.Context(), imageSize},
		"stopped: the stick is not usable: context canceled":             {memory{}, stopped, imageSize},
		"the image has 100 bytes: that is no image of a host":            {memory{}, t.Context(), 100},
		"the image is none of a host: no partition table":                {memory{}, t.Context(), -1},
		"between bytes 0 and 4194304 reads back differently: the stick":  {memory{changedAt: 600}, t.Context(), imageSize},
		"between bytes 12582912 and 12591104 reads back differently: th": {memory{changedAt: imageSize - 600}, t.Context(), imageSize},
	} {
		m, img := c.m, image(t)
		m.data = make([]byte, imageSize)
		if c.size < 0 {
			clear(img[:perm.TableSize])
			clear(img[imageSize-perm.BackupSize:])
			c.size = imageSize
		}
		if err := Write(c.ctx, &m, imageSize, bytes.NewReader(img), c.size, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestOpen writes to a file, and as root to a loop device, found and judged as a real stick is.
func TestOpen(t *testing.T) {
	img := image(t)
	const room = imageSize + Piece
	path := filepath.Join(t.TempDir(), "stick")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, room); err != nil {
		t.Fatal(err)
	}
	use := func(t *testing.T, path string) {
		t.Helper()
		d, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(Write(t.Context(), d, room, bytes.NewReader(img), imageSize, nil), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
	check := func(t *testing.T) {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got[perm.TableSize:imageSize-perm.BackupSize], img[perm.TableSize:imageSize-perm.BackupSize]) {
			t.Errorf("the content differs, %v", err)
		}
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, room); err != nil {
			t.Fatal(err)
		}
	}
	use(t, path)
	check(t)

	if os.Geteuid() != 0 {
		t.Skip("the rest needs root: a loop device")
	}
	out, err := exec.Command("losetup", "-f", "--show", path).Output()
	if err != nil {
		t.Skipf("no loop device here: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	defer func() {
		if err := exec.Command("losetup", "-d", loop).Run(); err != nil {
			t.Error(err)
		}
	}()
	s, err := ThisSystem()
	if err != nil {
		t.Fatal(err)
	}
	target, err := s.Probe(loop, imageSize)
	if err != nil || target.Size != room {
		t.Fatalf("%+v, %v", target, err)
	}
	if _, err := s.Probe(loop, room+1); err == nil || !strings.Contains(err.Error(), "too small") {
		t.Errorf("too small: %v", err)
	}
	use(t, loop)
	check(t)
}
