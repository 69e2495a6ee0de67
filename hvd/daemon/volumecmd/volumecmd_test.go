package volumecmd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/volume"
)

const definition = `{"name": "db", "uuid": "0f0e0d0c-0b0a-4908-8706-050403020100", "memory_mib": 64,
	"disks": [{"name": "root", "size_bytes": 4194304}]}`

// bench is a directory with a volume of 64 MiB and files.
type bench struct {
	t   *testing.T
	dir string
}

func newBench(t *testing.T) *bench {
	b := &bench{t, t.TempDir()}
	b.write("volume", make([]byte, 64<<20))
	b.write("db.json", []byte(definition))
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) write(name string, content []byte) {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), content, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// run runs a command line; words with a slash in front are files of the bench.
func (b *bench) run(line string) (string, error) {
	b.t.Helper()
	words := strings.Fields(line)
	for i, w := range words {
		if name, ok := strings.CutPrefix(w, "/"); ok {
			words[i] = b.path(name)
		}
	}
	var out bytes.Buffer
	err := Run(context.Background(), words[0], words[1:], &out, &out)
	return out.String(), err
}

// ok runs a command line that must work, and whose output must contain want.
func (b *bench) ok(line, want string) {
	b.t.Helper()
	out, err := b.run(line)
	if err != nil || !strings.Contains(out, want) {
		b.t.Fatalf("%s: %v, output %q, want %q", line, err, out, want)
	}
}

// fails runs a command line that must fail in one line that contains want.
func (b *bench) fails(line, want string) {
	b.t.Helper()
	out, err := b.run(line)
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		b.t.Errorf("%s: error %v (output %q), want one line with %q", line, err, out, want)
	}
}

func TestVolumeInFile(t *testing.T) {
	b := newBench(t)
	b.fails("volume check --file /volume", "no pair can work with this volume as it is: the volume isn't formatted for Duet")
	b.ok("volume format --file /volume", "is ready")
	b.fails("volume format --file /volume", "formatted for Duet already")
	b.ok("volume check --file /volume", "a pair can work with this volume\n")
	b.ok("volume create --file /volume /db.json", "VM db is defined, uuid 0f0e0d0c-0b0a-4908-8706-050403020100")
	b.fails("volume create --file /volume /db.json", "is taken")
	b.ok("volume list --file /volume", "db  stopped, disks not ready  64 MiB  verified  0     3")
	b.ok("volume check --file /volume", "VM db                   stopped  ! disk root of VM db isn't ready")

	image := bytes.Repeat([]byte("disk"), 1<<18)
	b.write("image", image)
	b.ok("disk import --file /volume db root /image", "is on disk root of VM db, 1 MiB were written")
	v := b.open()
	d, err := v.OpenDisk(context.Background(), "db", "root")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4<<20)
	if err := d.Read(context.Background(), 0, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, append(image, make([]byte, 3<<20)...)) {
		t.Error("the disk doesn't hold the image and zeros")
	}
}

// content is what a file holds.
func (b *bench) content(name string) []byte {
	b.t.Helper()
	p, err := os.ReadFile(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// TestRepair damages one copy of the VM definitions: nothing is lost, and it is written again.
func TestRepair(t *testing.T) {
	b := newBench(t)
	b.ok("volume format --file /volume", "is ready")
	b.ok("volume create --file /volume /db.json", "VM db is defined")
	b.ok("volume repair --file /volume", "nothing is damaged")
	content := b.content("volume")
	at := bytes.Index(content, []byte(`"name": "db"`))
	content[at+1] ^= 1
	b.write("volume", content)
	b.ok("volume list --file /volume", "db  stopped, disks not ready  64 MiB")
	b.ok("volume repair --file /volume", "VM definitions, copy 1 (block 4096): repaired; it was: checksum of VM definitions: damaged")
	b.ok("volume repair --file /volume", "nothing is damaged")
}

// TestRollback cuts an update off before its second copy, damages the first one, and goes back to the VM definitions before.
func TestRollback(t *testing.T) {
	const slot = 7 << 20 // bytes between the copies
	b := newBench(t)
	b.ok("volume format --file /volume", "is ready")
	b.ok("volume create --file /volume /db.json", "VM db is defined")
	before := b.content("volume")
	b.write("web.json", []byte(`{"name":"web","memory_mib":64,"disks":[{"name":"root","size_bytes":1048576}]}`))
	b.ok("volume create --file /volume /web.json", "VM web is defined")
	b.fails("volume rollback --file /volume", "nothing to go back from")

	content := b.content("volume")
	copy(content[2<<20:2<<20+slot], before[2<<20:]) // copy 1
	at := bytes.Index(content, []byte(`"name": "web"`))
	if at < 2<<20+slot || bytes.Count(content, []byte(`"name": "web"`)) != 1 {
		t.Fatalf("VM web isn't in the second copy alone (%d)", at)
	}
	b.write("volume", content)
	b.ok("volume list --file /volume", "web")
	content[at+1] ^= 1
	b.write("volume", content)
	b.fails("volume list --file /volume", `"hvd volume rollback" returns to them`)
	b.ok("volume rollback --file /volume", "db  stopped, disks not ready  64 MiB")
	if out, err := b.run("volume list --file /volume"); err != nil || strings.Contains(out, "web") {
		t.Errorf("after the rollback: %v, %q", err, out)
	}
}

// open opens the bench's volume for the rest of the test.
func (b *bench) open() *volume.Volume {
	b.t.Helper()
	f, err := os.OpenFile(b.path("volume"), os.O_RDWR, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.Close() })
	blocks, err := volume.NewFile(f, 512)
	if err != nil {
		b.t.Fatal(err)
	}
	v, err := volume.Open(context.Background(), blocks)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func TestForeignDataIsKept(t *testing.T) {
	b := newBench(t)
	content := make([]byte, 64<<20)
	copy(content[1<<20:], "somebody's thesis")
	b.write("volume", content)
	b.fails("volume format --file /volume", volume.ErrForeign.Error())
	now, err := os.ReadFile(b.path("volume"))
	if err != nil || !bytes.Equal(now, content) {
		t.Errorf("the volume was changed (%v)", err)
	}
}

// A definition that is refused changes nothing.
func TestDefinitionRefused(t *testing.T) {
	b := newBench(t)
	b.ok("volume format --file /volume", "")
	b.ok("volume create --file /volume /db.json", "")
	before, err := os.ReadFile(b.path("volume"))
	if err != nil {
		t.Fatal(err)
	}
	b.write("field.json", []byte(strings.Replace(definition, "memory_mib", "memory", 1)))
	b.write("huge.json", []byte(strings.Replace(definition, "64,", "1048577,", 1)))
	b.write("other.json", []byte(strings.Replace(strings.Replace(definition, `"db"`, `"other"`, 1), "0f0e0d0c", "0f0e0d0d", 1)))
	b.fails("volume create --file /volume /field.json", `invalid VM definition: unknown field "memory"`)
	b.fails("volume create --file /volume /huge.json", "memory_mib 1048577")
	b.fails("volume create --file /volume /db.json", `VM "db": name db is taken by VM "db"`)
	now, err := os.ReadFile(b.path("volume"))
	if err != nil || !bytes.Equal(now, before) {
		t.Errorf("the volume was changed (%v)", err)
	}
	b.ok("volume create --file /volume /other.json", "VM other is defined")
}

func TestImportRefused(t *testing.T) {
	b := newBench(t)
	b.ok("volume format --file /volume", "")
	b.ok("volume create --file /volume /db.json", "")
	b.write("empty", nil)
	b.write("qcow2", []byte("QFI\xfb and so on"))
	b.write("xz", []byte("\xfd7zXZ\x00"))
	b.write("large", make([]byte, 4<<20+1))
	b.write("image", []byte("bytes"))
	b.fails("disk import --file /volume db root /missing", "no such file")
	b.fails("disk import --file /volume db root /empty", "is empty")
	b.fails("disk import --file /volume db root /qcow2", "is a qcow2 file")
	b.fails("disk import --file /volume db root /xz", "is a xz file")
	b.fails("disk import --file /volume db root /large", "has 4194305 bytes, more than disk root of VM db (4194304)")
	b.fails("disk import --file /volume nope root /image", "not found")
	b.fails("disk import --file /volume db nope /image", "not found")

	v, ctx := b.open(), context.Background()
	def, err := v.Definition(ctx, "db")
	if err != nil {
		t.Fatal(err)
	}
	id, err := volume.ParseGUID(def.UUID)
	if err != nil {
		t.Fatal(err)
	}
	solo := pair.Block{VM: pair.UUID(id), Kind: pair.Solo, Epoch: 7, Owner: 1, Nonce: pair.Nonce{Incarnation: 1, N: 1}}
	if err := v.Blocks().Write(ctx, v.ArbiterLBA(def.Slot), arbiter.Encode(solo, 512)); err != nil {
		t.Fatal(err)
	}
	b.ok("volume list --file /volume", "one host's, epoch 7")
	b.fails("disk import --file /volume db root /image", "VM db isn't stopped")

	// It was stopped, and is started while the disk is written.
	free := pair.Block{VM: pair.UUID(id), Kind: pair.Free, Epoch: 8, Nonce: pair.Nonce{Incarnation: 1, N: 2}}
	write := func(p pair.Block) {
		if err := v.Blocks().Write(ctx, v.ArbiterLBA(def.Slot), arbiter.Encode(p, 512)); err != nil {
			t.Error(err)
		}
	}
	write(free)
	started := writerFunc(func() { write(solo) })
	err = Run(ctx, "disk", []string{"import", "--file", b.path("volume"), "db", "root", b.path("image")}, io.Discard, started)
	if err == nil || !strings.Contains(err.Error(), "VM db: the hold on it was taken over") {
		t.Errorf("import into a VM that starts: %v", err)
	}

	if err := v.Blocks().Write(ctx, v.ArbiterLBA(def.Slot), bytes.Repeat([]byte{1}, 512)); err != nil {
		t.Fatal(err)
	}
	b.ok("volume list --file /volume", "damaged arbiter block")
	b.fails("volume check --file /volume", "not a valid arbiter block")
	b.fails("disk import --file /volume db root /image", "not a valid arbiter block")
	b.ok("volume release --file /volume db", "VM db is stopped now")
	b.fails("volume release --file /volume db", "is undamaged")
	b.ok("disk import --file /volume db root /image", "is on disk root of VM db")
	b.ok("volume list --file /volume", "db  stopped  64 MiB")
}

// writerFunc is called for each write.
type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

func TestUsage(t *testing.T) {
	b := newBench(t)
	for line, want := range map[string]string{
		"volume":                         "",
		"volume explode --file /v":       "there is no hvd volume explode",
		"volume list":                    "which volume?",
		"volume list --portal 192.0.2.1": "which volume?",
		"volume list --file /volume --portal 192.0.2.1":                     "either --file or --portal",
		"volume list --file /volume extra":                                  "hvd volume list takes VOLUME and has 1 arguments",
		"volume list --fil /volume":                                         "flag provided but not defined",
		"disk import --file /volume db":                                     "hvd disk import takes VOLUME VM DISK IMAGE and has 1 arguments",
		"volume list --portal 192.0.2.1 --target iqn.2026-01.x:y --lun -1":  "--lun -1",
		"volume list --portal 192.0.2.1 --target iqn.2026-01.x:y --lun one": "invalid value",
	} {
		if _, err := b.run(line); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want wrong use, %q", line, err, want)
		}
	}
	b.fails("volume list --file /missing", "no such file")
	b.fails("volume list --file /db.json", "db.json")
	b.fails("volume list --portal 127.0.0.1:1 --target iqn.2026-01.x:y", "127.0.0.1:1")
}
