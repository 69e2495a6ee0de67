package playback

import (
	"errors"
	"fmt"
	"maps"

	"github.com/klauspost/compress/s2"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/recording"
)

// checkpoint is a place to come back to: behind an entry of the log that harvests.
type checkpoint struct {
	mark   *machine.Snapshot
	base   event.Base
	lsn    uint64
	marks  uint64
	entry  uint64
	pages  map[int][]byte // written since the checkpoint before: S2
	origin bool           // the recording's start, whose memory is in the file
}

func (c *checkpoint) position() uint64 { return c.mark.Position }

const (
	// firstEvery is how many exits lie between two checkpoints at first.
	firstEvery = 200
	// maxCheckpoints bounds them: with more, every other one goes, and from then
	// on they lie twice as far apart.
	maxCheckpoints = 64
	// maxHeld bounds the memory of all of them, in bytes; the same happens.
	maxHeld = 1 << 30
)

// history is an execution's checkpoints, oldest first.
type history struct {
	points []*checkpoint
	from   int // the last one that the execution came by
	every  uint64
	held   int
}

// keepHistory makes the first checkpoint, at the recording's start.
func (p *Player) keepHistory() error {
	p.history = &history{every: firstEvery}
	p.Machine.Watch(true)
	return p.checkpoint(true)
}

// checkpoint makes one here.
func (p *Player) checkpoint(origin bool) error {
	h, m := p.history, p.Machine
	mark, err := m.Bookmark()
	if err != nil {
		return err
	}
	set := make([]uint64, (m.Memory.Pages()+63)/64)
	if err := m.TakeWatched(set); err != nil {
		return err
	}
	c := &checkpoint{
		mark: mark, base: p.base, lsn: p.began + p.replayer.Executed(),
		marks: p.marks, entry: p.entries, pages: map[int][]byte{}, origin: origin,
	}
	if !origin {
		for _, n := range mem.PageSet(set) {
			z := s2.Encode(nil, m.Memory.Page(n))
			c.pages[n] = z
			h.held += len(z)
		}
	}
	h.points = append(h.points, c)
	h.from = len(h.points) - 1
	h.thin()
	return nil
}

// thin lets every other checkpoint go when there are too many: what was written
// before one that goes counts as written before the next.
func (h *history) thin() {
	n := len(h.points)
	if n <= maxCheckpoints && h.held <= maxHeld || n < 4 || h.from != n-1 {
		return
	}
	kept := h.points[:1]
	for i := 1; i < n; i++ {
		c := h.points[i]
		if i%2 == 1 && i != n-1 {
			next := h.points[i+1]
			for page, z := range c.pages {
				if _, newer := next.pages[page]; newer {
					h.held -= len(z)
				} else {
					next.pages[page] = z
				}
			}
			continue
		}
		kept = append(kept, c)
	}
	h.points, h.from = kept, len(kept)-1
	h.every *= 2
}

// passed is called where the log has harvested: it makes a checkpoint when one is
// due, and knows one that was made here before.
func (p *Player) passed() error {
	h := p.history
	if h == nil {
		return nil
	}
	if next := h.from + 1; next < len(h.points) {
		if h.points[next].lsn != p.began+p.replayer.Executed() {
			return nil
		}
		h.from = next
		return p.Machine.TakeWatched(make([]uint64, (p.Machine.Memory.Pages()+63)/64))
	}
	if p.Machine.Position() < h.points[h.from].position()+h.every {
		return nil
	}
	if err := p.checkpoint(false); !errors.Is(err, machine.ErrNotHere) {
		return err
	}
	return nil
}

// before is the last checkpoint before a position, or the first one. At its own
// position a checkpoint is behind some of the log's entries.
func (h *history) before(position uint64) int {
	i := len(h.points) - 1
	for i > 0 && h.points[i].position() >= position {
		i--
	}
	return i
}

// back returns to a checkpoint.
func (p *Player) back(to int) error {
	h, m := p.history, p.Machine
	if err := m.Leave(); err != nil {
		return err
	}
	set := make([]uint64, (m.Memory.Pages()+63)/64)
	if err := m.TakeWatched(set); err != nil {
		return err
	}
	stale := map[int]bool{}
	for _, n := range mem.PageSet(set) {
		stale[n] = true
	}
	for i := min(to, h.from) + 1; i <= max(to, h.from); i++ {
		for n := range h.points[i].pages {
			stale[n] = true
		}
	}
	for i := to; i >= 0 && len(stale) > 0; i-- {
		for n, z := range h.points[i].pages {
			if !stale[n] {
				continue
			}
			if _, err := s2.Decode(m.Memory.Page(n), z); err != nil {
				return fmt.Errorf("page %#x of a checkpoint: %w", n, err)
			}
			delete(stale, n)
		}
	}
	if err := p.original(stale); err != nil {
		return err
	}
	c := h.points[to]
	if err := m.Return(c.mark); err != nil {
		return err
	}
	h.from = to
	p.ended = nil
	p.marks, p.entries = c.marks, c.entry
	p.begin(c.base, c.lsn)
	return nil
}

// original brings pages back to what the file has.
func (p *Player) original(stale map[int]bool) error {
	m := p.Machine.Memory
	blocks := map[recording.Ref]bool{}
	for n := range maps.Keys(stale) {
		at, ok := p.pages[n]
		if !ok {
			clear(m.Page(n))
			continue
		}
		blocks[at] = true
	}
	for at := range blocks {
		b, err := recording.ReadAt(p.file, at)
		if err != nil {
			return err
		}
		err = b.Pages(m.Pages(), func(n int, content []byte) {
			if !stale[n] || p.pages[n] != at {
				return
			}
			if content == nil {
				clear(m.Page(n))
				return
			}
			copy(m.Page(n), content)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
