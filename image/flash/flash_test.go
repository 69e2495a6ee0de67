package flash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	g := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, GUID: "60C24CC1-F3F9-427A-8199-C6414F530000"}
	starts := []uint64{2048, 18432, 20480, 22528, 24544}
	for i := range uint64(4) {
		g.Partitions = append(g.Partitions, &gpt.Partition{
			Index: int(i + 1), Start: starts[i], End: starts[i+1] - 1, Type: gpt.LinuxFilesystem, Name: "p",
			GUID: fmt.Sprintf("60C24CC1-F3F9-427A-8199-C6414F5300%02X", i+1),
		})
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
	for _, at := range named {
		copy(b[at:], "root=PARTUUID="+oldGUID)
	}
	return b
}

// named is where the image names its disk: in the boot partition twice, the second time across two pieces, and beyond.
var named = []int{1<<20 + 5, 1<<20 + Piece - 30, 2*Piece + 3<<19 + 100}

const (
	testDisk = 0xdeadbeef
	oldGUID  = "60c24cc1-f3f9-427a-8199-c6414f530001"
	newGUID  = "60c24cc1-f3f9-427a-8199-deadbeef0001"
)

// written is what has to be on a medium between the two copies of the table.
func written(img []byte) []byte {
	b := bytes.Clone(img)
	for _, at := range named[:2] {
		copy(b[at:], "root=PARTUUID="+newGUID)
	}
	return b[perm.TableSize : imageSize-perm.BackupSize]
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
		err := Write(t.Context(), m, room, Image{bytes.NewReader(img), imageSize, testDisk}, func(done, of int64) {
			if done < last || done > of {
				t.Errorf("progress goes from %d to %d of %d", last, done, of)
			}
			last, total = done, of
		})
		if err != nil || last != total {
			t.Fatalf("room for %d: %v; progress %d of %d", room, err, last, total)
		}
		// All is the image but for the table, which is right for this disk.
		if !bytes.Equal(m.data[perm.TableSize:imageSize-perm.BackupSize], written(img)) {
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
		"the image is none of a host: nothing on its boot partition":     {memory{}, t.Context(), -2},
		"between bytes 0 and 4194304 reads back differently: the stick":  {memory{changedAt: 600}, t.Context(), imageSize},
		"between bytes 12582912 and 12591104 reads back differently: th": {memory{changedAt: imageSize - 600}, t.Context(), imageSize},
	} {
		m, img := c.m, image(t)
		m.data = make([]byte, imageSize)
		switch c.size {
		case -1:
			clear(img[:perm.TableSize])
		case -2:
			clear(img[1<<20 : 9<<20])
		}
		if c.size < 0 {
			c.size = imageSize
		}
		if err := Write(c.ctx, &m, imageSize, Image{bytes.NewReader(img), c.size, testDisk}, nil); err == nil || !strings.Contains(err.Error(), want) {
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
		if err := errors.Join(Write(t.Context(), d, room, Image{bytes.NewReader(img), imageSize, testDisk}, nil), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
	check := func(t *testing.T) {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got[perm.TableSize:imageSize-perm.BackupSize], written(img)) {
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
