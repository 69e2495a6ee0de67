package define

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/volume"
)

const me = Keeper("iqn.2026-01.org.duet-ft:a")

func open(t *testing.T) (*volume.Volume, *volume.MemorySession) {
	t.Helper()
	s := volume.NewMemory(1<<17, 512).Session("a")
	if err := volume.Format(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	return v, s
}

func definition(name string) volume.Definition {
	return volume.Definition{
		Name: name, Slot: volume.AutoSlot, MemoryMiB: 64, Disks: []volume.DiskDef{{Name: "root", SizeBytes: 1 << 20}},
	}
}

func TestCreatedStopped(t *testing.T) {
	v, _ := open(t)
	ctx := context.Background()
	def, err := Create(ctx, v, definition("db"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := Block(ctx, v, def); err != nil || b.Kind != pair.Free || b.Epoch == 0 {
		t.Errorf("its arbiter block is %v, %v; want a FREE one that was written", b, err)
	}
	if err := Delete(ctx, v, me, "db"); err != nil {
		t.Error(err)
	}
	if err := Delete(ctx, v, me, "db"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("deleting it twice: %v", err)
	}
}

func TestNotStopped(t *testing.T) {
	v, s := open(t)
	ctx := context.Background()
	def, err := Create(ctx, v, definition("db"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Block(ctx, v, def)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []pair.BlockKind{pair.Solo, pair.Pair} {
		b.Kind, b.Epoch, b.Owner = kind, b.Epoch+1, 1
		if kind == pair.Pair {
			b.Secondary, b.Seed = 2, pair.Seed{Incarnation: 1, N: 1}
		}
		if err := s.Write(ctx, v.ArbiterLBA(def.Slot), arbiter.Encode(b, 512)); err != nil {
			t.Fatal(err)
		}
		if err := Delete(ctx, v, me, "db"); !errors.Is(err, ErrNotStopped) {
			t.Errorf("deleting a VM whose block is %v: %v", b, err)
		}
	}
}

// TestDamagedBlock: a VM whose block is zeros or garbage counts as neither stopped nor running, until a person says so.
func TestDamagedBlock(t *testing.T) {
	v, s := open(t)
	ctx := context.Background()
	def, err := Create(ctx, v, definition("db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Reset(ctx, v, def); err == nil || !strings.Contains(err.Error(), "undamaged") {
		t.Errorf("reset of a good block: %v", err)
	}
	good := make([]byte, 512)
	if err := s.Read(ctx, v.ArbiterLBA(def.Slot), good); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[40] ^= 1
	for _, bad := range [][]byte{make([]byte, 512), flipped, bytes.Repeat([]byte("x"), 512)} {
		if err := s.Write(ctx, v.ArbiterLBA(def.Slot), bad); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{Stopped(ctx, v, def), Delete(ctx, v, me, "db")} {
			if err == nil || !strings.Contains(err.Error(), `"hvd volume release"`) || strings.Contains(err.Error(), "\n") {
				t.Errorf("block %.8q: %v", bad, err)
			}
		}
		if err := Reset(ctx, v, def); err != nil {
			t.Error(err)
		}
		if b, err := Block(ctx, v, def); err != nil || b.Kind != pair.Free || b.Epoch < 1<<40 {
			t.Errorf("after the reset: %v, %v", b, err)
		}
	}
	if err := Delete(ctx, v, me, "db"); err != nil {
		t.Error(err)
	}
}

// TestCreateCut loses the volume at each access of a Create: what is defined has its block.
func TestCreateCut(t *testing.T) {
	for n := 1; ; n++ {
		v, s := open(t)
		accesses := 0
		s.Fault = func(volume.Op, uint64, int) volume.Fault {
			if accesses++; accesses >= n {
				return volume.Fault{Err: errors.New("volume is gone")}
			}
			return volume.Fault{}
		}
		_, err := Create(context.Background(), v, definition("db"))
		s.Fault = nil
		list, lookErr := v.Definitions(context.Background())
		if lookErr != nil {
			t.Fatal(lookErr)
		}
		for _, def := range list {
			if b, err := Block(context.Background(), v, def); err != nil || b.Kind != pair.Free {
				t.Fatalf("gone at access %d: block %v, %v", n, b, err)
			}
		}
		if err == nil {
			if n < 10 || len(list) != 1 {
				t.Errorf("%d accesses, %d VMs", n, len(list))
			}
			return
		}
	}
}
