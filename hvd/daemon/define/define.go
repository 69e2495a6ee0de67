// Package define makes, changes and removes virtual machines on a volume: their definition and disks, and the arbiter
// block that says who may run them.
//
// # Place
//
// hvd/daemon does so for its API, and hvd/daemon/volumecmd from a command line. It imports hvd/volume, ftlink/arbiter and
// pair, and hvd/iscsi for its errors.
//
// # Holding a VM
//
// Who changes the disks of a VM, or deletes it, holds the VM meanwhile, so that no host starts it. The arbiter block decides
// that as it decides everything: one COMPARE AND WRITE turns it from FREE into SOLO of a keeper, which is no host.
//
//	FREE(e) --Take--> SOLO(e+1, keeper) --Renew, each 10 s--> SOLO(e+2, keeper) ... --Release--> FREE(e+n)
//
// A host's number is odd, a keeper's even: a hash of the initiator name that writes. A start that comes meanwhile fails as if
// the other host ran the VM. A hold that hasn't changed for 60 s is its dead keeper's. Who takes it over shuts the keeper's
// session out of the volume first, as one fences a host; a keeper that wakes up finds its writes refused, and stops writing
// by itself when it couldn't renew its hold for 20 s.
package define

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/volume"
)

// ErrNotStopped says that a host may be running the VM.
var ErrNotStopped = errors.New("isn't stopped: stop it first")

// Create adds a VM to the volume, with its arbiter block saying that it is stopped. Its disks are new: volume.Fill
// makes them usable.
func Create(ctx context.Context, v *volume.Volume, def volume.Definition) (volume.Definition, error) {
	return v.Create(ctx, def, func(def volume.Definition) ([]byte, error) {
		x, err := executor(v, def)
		if err != nil {
			return nil, err
		}
		first := pair.Block{VM: x.VM, Kind: pair.Free, Epoch: 1, Nonce: freshNonce()}
		return arbiter.Encode(first, x.Size), nil
	})
}

// Delete removes a VM and its disks, if it is stopped. No host can start it from the moment on that this was found out.
func Delete(ctx context.Context, v *volume.Volume, keeper Keeper, name string) error {
	def, err := v.Definition(ctx, name)
	if err != nil {
		return err
	}
	h, err := Take(ctx, v, keeper, def)
	if err != nil {
		return err
	}
	if err := v.Delete(ctx, name, def.UUID); err != nil {
		// It may be deleted all the same; then nobody looks at its block any more.
		return errors.Join(err, h.Release(context.WithoutCancel(ctx)))
	}
	return nil
}

// Stopped fails with ErrNotStopped if the arbiter block lets a host run the VM.
func Stopped(ctx context.Context, v *volume.Volume, def volume.Definition) error {
	b, err := Block(ctx, v, def)
	if err == nil && b.Kind != pair.Free {
		return fmt.Errorf("VM %s %w", def.Name, ErrNotStopped)
	}
	return err
}

// Block reads a VM's arbiter block.
func Block(ctx context.Context, v *volume.Volume, def volume.Definition) (pair.Block, error) {
	x, err := executor(v, def)
	if err != nil {
		return pair.Block{}, err
	}
	b, err := x.Read(ctx)
	if errors.Is(err, arbiter.ErrBlank) || errors.Is(err, arbiter.ErrCorrupt) {
		return b, fmt.Errorf("VM %s: %w; nobody can start it. When neither host runs it, \"hvd volume release\" makes it one that is stopped", def.Name, err)
	}
	return b, err
}

// Reset makes a VM stopped whose arbiter block is damaged: the caller knows that neither host runs it. It does nothing to a
// block that is undamaged.
func Reset(ctx context.Context, v *volume.Volume, def volume.Definition) error {
	_, err := Block(ctx, v, def)
	if err == nil {
		return fmt.Errorf("VM %s: its arbiter block is undamaged", def.Name)
	}
	if !errors.Is(err, arbiter.ErrBlank) && !errors.Is(err, arbiter.ErrCorrupt) {
		return err
	}
	x, err := executor(v, def)
	if err != nil {
		return err
	}
	now := make([]byte, x.Size)
	if err := v.Blocks().Read(ctx, x.LBA, now); err != nil {
		return err
	}
	var high [8]byte
	if _, err := rand.Read(high[:]); err != nil {
		return err
	}
	// Epochs only grow. What the block's was nobody knows, so the new one is far above what a VM reaches in its life.
	epoch := 1<<40 | uint64(binary.LittleEndian.Uint32(high[:]))<<8
	next := pair.Block{VM: x.VM, Kind: pair.Free, Epoch: epoch, Nonce: freshNonce()}
	ok, err := x.Blocks.CompareAndWrite(ctx, x.LBA, now, arbiter.Encode(next, x.Size))
	if err == nil && !ok {
		err = fmt.Errorf("VM %s: its arbiter block has just changed; look again", def.Name)
	}
	return err
}

func executor(v *volume.Volume, def volume.Definition) (*arbiter.Executor, error) {
	id, err := volume.ParseGUID(def.UUID)
	if err != nil {
		return nil, fmt.Errorf("VM %s: uuid: %w", def.Name, err)
	}
	_, size := v.Blocks().Capacity()
	return &arbiter.Executor{Blocks: lasting{v.Blocks()}, LBA: v.ArbiterLBA(def.Slot), Size: size, VM: pair.UUID(id)}, nil
}

// lasting makes a swap survive a target's loss of power before anybody acts on it.
type lasting struct{ volume.Blocks }

// CompareAndWrite swaps and flushes.
func (l lasting) CompareAndWrite(ctx context.Context, lba uint64, old, new []byte) (bool, error) {
	ok, err := l.Blocks.CompareAndWrite(ctx, lba, old, new)
	if err != nil || !ok {
		return ok, err
	}
	return true, l.Sync(ctx)
}

func freshNonce() pair.Nonce {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // documented never to happen
	}
	return pair.Nonce{Incarnation: binary.LittleEndian.Uint64(b[:]) | 1, N: binary.LittleEndian.Uint64(b[8:])}
}
