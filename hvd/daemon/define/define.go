// Package define makes and removes virtual machines on a volume: their definition and disks, and the arbiter block that
// says who may run them.
//
// # Place
//
// hvd/daemon does so for its API, and hvd/daemon/volumecmd from a command line. It imports hvd/volume, and ftlink/arbiter
// and pair.
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

// Create adds a VM to the volume, with its arbiter block saying that it is stopped.
func Create(ctx context.Context, v *volume.Volume, def volume.Definition) (volume.Definition, error) {
	def, err := v.Create(ctx, def)
	if err != nil {
		return def, err
	}
	x, err := executor(v, def)
	if err == nil {
		var random [8]byte
		if _, err := rand.Read(random[:]); err != nil {
			return def, err
		}
		err = x.Init(ctx, pair.Nonce{Incarnation: binary.LittleEndian.Uint64(random[:]), N: 1})
	}
	if err != nil {
		return def, fmt.Errorf("VM %s is defined, but its arbiter block couldn't be written: %w", def.Name, err)
	}
	return def, nil
}

// Delete removes a VM and its disks, if it is stopped.
func Delete(ctx context.Context, v *volume.Volume, name string) error {
	def, err := v.Definition(ctx, name)
	if err != nil {
		return err
	}
	if err := Stopped(ctx, v, def); err != nil {
		return err
	}
	return v.Delete(ctx, name)
}

// Stopped fails with ErrNotStopped if the arbiter block lets a host run the VM.
func Stopped(ctx context.Context, v *volume.Volume, def volume.Definition) error {
	b, err := Block(ctx, v, def)
	if err == nil && b.Kind != pair.Free {
		return fmt.Errorf("VM %s %w", def.Name, ErrNotStopped)
	}
	return err
}

// Block reads a VM's arbiter block. One that was never used counts as that of a VM that is stopped.
func Block(ctx context.Context, v *volume.Volume, def volume.Definition) (pair.Block, error) {
	x, err := executor(v, def)
	if err != nil {
		return pair.Block{}, err
	}
	b, err := x.Read(ctx)
	if errors.Is(err, arbiter.ErrBlank) {
		return pair.Block{VM: x.VM, Kind: pair.Free}, nil
	}
	return b, err
}

func executor(v *volume.Volume, def volume.Definition) (*arbiter.Executor, error) {
	id, err := volume.ParseGUID(def.UUID)
	if err != nil {
		return nil, fmt.Errorf("VM %s: uuid: %w", def.Name, err)
	}
	_, size := v.Blocks().Capacity()
	return &arbiter.Executor{Blocks: v.Blocks(), LBA: v.ArbiterLBA(def.Slot), Size: size, VM: pair.UUID(id)}, nil
}
