package define

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/volume"
)

const (
	// StaleAfter is how long a hold must not have changed to be a dead keeper's.
	StaleAfter = 60 * time.Second
	// RenewEvery is how often a hold changes.
	RenewEvery = 10 * time.Second
	// lease is how long a keeper goes on writing without having renewed its hold.
	lease = 20 * time.Second
)

// ErrHeld says that somebody else changes the VM's disks, or deletes it.
var ErrHeld = errors.New("its disks are being changed")

// ErrLost says that a hold isn't the caller's any more.
var ErrLost = errors.New("the hold on it was taken over by another host")

// Keeper is who holds a VM: the name of the initiator or the session that writes, or of a file. One keeper must not hold a VM
// twice.
type Keeper string

// SessionKeeper is one session of an initiator that may have several, each of which is a keeper of its own.
func SessionKeeper(initiator string, isid [6]byte) Keeper {
	return Keeper(fmt.Sprintf("%s,i,0x%x", initiator, isid))
}

// ID is the keeper's number in an arbiter block: even, and not zero.
func (k Keeper) ID() pair.HostID {
	sum := sha256.Sum256([]byte("duet keeper " + strings.ToLower(string(k))))
	return pair.HostID(binary.BigEndian.Uint64(sum[:])|2) &^ 1
}

// Held says that a block is held by a keeper, and not by a host.
func Held(b pair.Block) bool { return b.Kind == pair.Solo && b.Owner&1 == 0 }

// Hold is a VM that no host can start. Its methods may be called concurrently.
type Hold struct {
	def    volume.Definition
	x      *arbiter.Executor
	keeper pair.HostID

	mu    sync.Mutex
	block pair.Block
	at    time.Time // when the last swap that succeeded was begun
}

// Take holds a VM that is stopped. ErrNotStopped: a host may be running it; ErrHeld: another keeper has it. A keeper takes
// its own holds over, which a crash left behind: it must not have two at a time.
func Take(ctx context.Context, v *volume.Volume, keeper Keeper, def volume.Definition) (*Hold, error) {
	b, err := Block(ctx, v, def)
	switch {
	case err != nil:
		return nil, err
	case Held(b) && b.Owner != keeper.ID():
		return nil, fmt.Errorf("VM %s: %w by another host; try again when that is done", def.Name, ErrHeld)
	case b.Kind != pair.Free && !Held(b):
		return nil, fmt.Errorf("VM %s %w", def.Name, ErrNotStopped)
	}
	return take(ctx, v, keeper, def, b)
}

// TakeOver takes a hold over from a keeper that is dead: the caller saw the block b unchanged for StaleAfter, and has shut
// its keeper out of the volume since.
func TakeOver(ctx context.Context, v *volume.Volume, keeper Keeper, def volume.Definition, b pair.Block) (*Hold, error) {
	if !Held(b) {
		return nil, fmt.Errorf("VM %s isn't held", def.Name)
	}
	return take(ctx, v, keeper, def, b)
}

func take(ctx context.Context, v *volume.Volume, keeper Keeper, def volume.Definition, b pair.Block) (*Hold, error) {
	x, err := executor(v, def)
	if err != nil {
		return nil, err
	}
	h := &Hold{def: def, x: x, keeper: keeper.ID(), block: b}
	if err := h.swap(ctx, pair.Solo); err != nil {
		if errors.Is(err, ErrLost) {
			err = fmt.Errorf("VM %s has just been started, or is being changed by another host", def.Name)
		}
		return nil, err
	}
	return h, nil
}

// swap writes the next block. An unknown outcome is read back, a few times.
func (h *Hold) swap(ctx context.Context, kind pair.BlockKind) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := pair.Block{VM: h.x.VM, Kind: kind, Epoch: h.block.Epoch + 1, Nonce: freshNonce()}
	if kind == pair.Solo {
		next.Owner = h.keeper
	}
	var done pair.ArbiterDone
	for range 3 {
		begun := time.Now()
		done = h.x.Do(ctx, pair.Arbiter{Kind: pair.Swap, Old: h.block, New: next})
		switch {
		case done.Answer == pair.Swapped:
			h.block, h.at = next, begun
			return nil
		case done.Answer == pair.Current:
			return fmt.Errorf("VM %s: %w", h.def.Name, ErrLost)
		case !errors.Is(done.Err, iscsi.ErrUnknownOutcome):
			return done.Err
		}
	}
	return done.Err
}

// Renew shows that the keeper lives.
func (h *Hold) Renew(ctx context.Context) error { return h.swap(ctx, pair.Solo) }

// Release lets hosts start the VM again.
func (h *Hold) Release(ctx context.Context) error { return h.swap(ctx, pair.Free) }

// Valid fails when the keeper must not write any more, because the hold wasn't renewed for too long.
func (h *Hold) Valid() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if since := time.Since(h.at); since > lease {
		return fmt.Errorf("VM %s: its hold couldn't be renewed for %v", h.def.Name, since.Round(time.Second))
	}
	return nil
}

// Keep runs do, which may take long, and renews the hold meanwhile. do's context ends when the hold is lost; then that is
// the error.
func (h *Hold) Keep(ctx context.Context, do func(ctx context.Context) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var renewing sync.WaitGroup
	renewing.Go(func() {
		t := time.NewTicker(RenewEvery)
		defer t.Stop()
		for {
			select {
			case <-inner.Done():
				return
			case <-t.C:
			}
			err := h.Renew(inner)
			if err != nil && !errors.Is(err, ErrLost) {
				err = h.Valid() // it may do better the next time
			}
			if err != nil {
				cancel(err)
				return
			}
		}
	})
	err := do(inner)
	lost := context.Cause(inner)
	cancel(nil)
	renewing.Wait()
	if lost != nil && ctx.Err() == nil {
		return lost
	}
	return err
}
