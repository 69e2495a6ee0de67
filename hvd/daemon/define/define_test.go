package define

import (
	"context"
	"errors"
	"testing"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/volume"
)

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
	if err := Delete(ctx, v, "db"); err != nil {
		t.Error(err)
	}
	if err := Delete(ctx, v, "db"); !errors.Is(err, volume.ErrNotFound) {
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
		if err := Delete(ctx, v, "db"); !errors.Is(err, ErrNotStopped) {
			t.Errorf("deleting a VM whose block is %v: %v", b, err)
		}
	}
	if err := s.Write(ctx, v.ArbiterLBA(def.Slot), make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	if err := Stopped(ctx, v, def); err != nil {
		t.Errorf("a VM whose block was never used: %v", err)
	}
}

// TestArbiterOutOfReach loses the volume between the definition and the block.
func TestArbiterOutOfReach(t *testing.T) {
	v, s := open(t)
	swaps := 0
	s.Fault = func(op volume.Op, lba uint64, _ int) volume.Fault {
		if op == volume.OpCompareAndWrite && lba == v.ArbiterLBA(0) {
			swaps++
			return volume.LostRequest()
		}
		return volume.Fault{}
	}
	if _, err := Create(context.Background(), v, definition("db")); err == nil || swaps == 0 {
		t.Errorf("no error after %d lost swaps", swaps)
	}
}
