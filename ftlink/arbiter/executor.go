package arbiter

import (
	"context"
	"errors"
	"fmt"

	"github.com/duet-ft/duet/ftlink/pair"
)

// Blocks is a volume, as far as the arbiter needs it. len(p), len(old) and
// len(new) are one logical block.
type Blocks interface {
	// Read fills p with block lba.
	Read(ctx context.Context, lba uint64, p []byte) error
	// CompareAndWrite replaces block lba by new if it holds old, atomically,
	// and says whether it did (SBC-4, COMPARE AND WRITE; false is status CHECK
	// CONDITION with sense key MISCOMPARE). After an error nothing is known:
	// the command may take effect, even later. It is never repeated inside.
	CompareAndWrite(ctx context.Context, lba uint64, old, new []byte) (bool, error)
}

// Executor carries out the operations on one VM's arbiter block. It keeps no
// state, so operations may overlap.
type Executor struct {
	Blocks Blocks
	LBA    uint64 // of the block
	Size   int    // of a logical block, bytes
	VM     pair.UUID
}

// Read returns the block.
func (x *Executor) Read(ctx context.Context) (pair.Block, error) {
	p := make([]byte, max(x.Size, MinSize))
	if err := x.Blocks.Read(ctx, x.LBA, p); err != nil {
		return pair.Block{}, fmt.Errorf("can't read the arbiter block: %w", err)
	}
	b, err := Decode(p)
	if err != nil {
		return pair.Block{}, err
	}
	if b.VM != x.VM {
		return pair.Block{}, fmt.Errorf("%w: it belongs to VM %v, want %v", ErrCorrupt, b.VM, x.VM)
	}
	return b, nil
}

// Do carries out one operation and returns its answer.
func (x *Executor) Do(ctx context.Context, op pair.Arbiter) pair.ArbiterDone {
	done := pair.ArbiterDone{Op: op.Op}
	if op.Kind == pair.Swap {
		done.Answer, done.Block, done.Err = x.swap(ctx, op.Old, op.New)
		return done
	}
	b, err := x.Read(ctx)
	if err != nil {
		done.Err = err
		return done
	}
	done.Answer, done.Block = pair.Current, b
	return done
}

// swap tries once. On anything but a plain yes it reads the block back: the
// nonce tells whether this or an earlier attempt took place. The old block
// being still there tells nothing, since the attempt may be on its way.
func (x *Executor) swap(ctx context.Context, old, new pair.Block) (pair.Answer, pair.Block, error) {
	ok, err := x.Blocks.CompareAndWrite(ctx, x.LBA, Encode(old, x.Size), Encode(new, x.Size))
	if err == nil && ok {
		return pair.Swapped, new, nil
	}
	b, rerr := x.Read(ctx)
	switch {
	case rerr != nil:
		return pair.Unknown, pair.Block{}, errors.Join(err, rerr)
	case b == new:
		return pair.Swapped, new, nil
	case b != old:
		return pair.Current, b, nil
	case err == nil:
		err = errors.New("the volume says that the arbiter block differs, but it doesn't")
	}
	return pair.Unknown, pair.Block{}, fmt.Errorf("arbiter block: outcome unknown: %w", err)
}
