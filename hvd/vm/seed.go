package vm

import (
	"context"
	"fmt"
	"math/bits"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
)

// Sink is where a state transfer goes. Pages may be sent more than once; the
// last content counts. page's result is valid during the call only.
type Sink interface {
	Pages(pages []int, page func(int) []byte) error
	Snapshot(*machine.Snapshot, event.Base) error
}

// SeedStats says what a state transfer took.
type SeedStats struct {
	Rounds int           // live rounds
	Pages  int           // pages sent, those sent twice counted twice
	Known  int           // pages that the other side had already
	Used   int           // pages that weren't all zero when it began
	Pause  time.Duration // how long the guest stood still at the end
	Total  time.Duration
}

const (
	// A live transfer ends when so few pages are left, or after so many rounds.
	fewPages  = 512
	maxRounds = 8
	// pageBatch is how many pages go into one call of Sink.Pages.
	pageBatch = 256
)

// Seed sends the running machine's state to sink: its memory while it runs,
// round by round, then, with the guest stopped, what changed last and the rest
// of the state. The machine is a primary from that position on; its log goes
// to send, which must not reach the other side before the snapshot has. On an
// error before that position it runs on alone.
//
// known, if not nil, says that the other side has a page with this content
// already; the first round leaves it out. What the guest writes to it meanwhile
// goes with a later round.
func (e *Engine) Seed(ctx context.Context, sink Sink, known func(page int, content []byte) bool,
	send func(lsn uint64, batch []byte),
) (stats SeedStats, err error) {
	begun := time.Now()
	err = e.Do(ctx, func(m *machine.Machine) error {
		if err := e.endTape("the VM's protection began, which takes a log of its own; record again once it is protected"); err != nil {
			return err
		}
		e.seeding = true
		e.startTraps() // before the snapshot, which has them
		return m.LogDirty(true)
	})
	if err != nil {
		return stats, err
	}
	defer func() {
		if err != nil {
			e.seedEnded()
		}
	}()
	set := firstRound(e.m.Memory, known, &stats)
	for left := count(set); stats.Rounds < maxRounds && left > fewPages; stats.Rounds++ {
		if err := sendPages(ctx, sink, mem.PageSet(set), e.m.Memory.Page, &stats); err != nil {
			return stats, err
		}
		clear(set)
		if err := e.Do(ctx, func(m *machine.Machine) error { return m.TakeDirty(set) }); err != nil {
			return stats, err
		}
		left = count(set)
	}
	var snapshot *machine.Snapshot
	var base event.Base
	var last []int
	var content []byte
	err = e.Do(ctx, func(m *machine.Machine) error {
		stopped := time.Now()
		defer func() { stats.Pause = time.Since(stopped) }()
		var err error
		if snapshot, err = m.Snapshot(); err != nil {
			return err
		}
		// After Snapshot: finishing a port access may write to memory.
		if err := m.TakeDirty(set); err != nil {
			return err
		}
		last = mem.PageSet(set)
		content = make([]byte, 0, len(last)*mem.PageSize)
		for _, p := range last {
			content = append(content, m.Memory.Page(p)...)
		}
		base = m.Base()
		e.seeding = false
		return e.Record(send)
	})
	if err != nil {
		return stats, err
	}
	at := make(map[int]int, len(last))
	for i, p := range last {
		at[p] = i * mem.PageSize
	}
	copied := func(p int) []byte { return content[at[p] : at[p]+mem.PageSize] }
	if err := sendPages(ctx, sink, last, copied, &stats); err != nil {
		return stats, err
	}
	if err := sink.Snapshot(snapshot, base); err != nil {
		return stats, fmt.Errorf("send the machine's state: %w", err)
	}
	stats.Total = time.Since(begun)
	return stats, nil
}

// firstRound is the set of pages that the other side hasn't.
func firstRound(m *mem.Memory, known func(page int, content []byte) bool, stats *SeedStats) []uint64 {
	set := make([]uint64, (m.Pages()+63)/64)
	for p := range m.Pages() {
		if !m.IsZero(p) {
			stats.Used++
		}
		if known != nil && known(p, m.Page(p)) {
			stats.Known++
			continue
		}
		set[p/64] |= 1 << (p % 64)
	}
	return set
}

func sendPages(ctx context.Context, sink Sink, pages []int, page func(int) []byte, stats *SeedStats) error {
	for len(pages) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(pages), pageBatch)
		if err := sink.Pages(pages[:n], page); err != nil {
			return fmt.Errorf("send memory: %w", err)
		}
		stats.Pages += n
		pages = pages[n:]
	}
	return nil
}

func count(set []uint64) int {
	n := 0
	for _, w := range set {
		n += bits.OnesCount64(w)
	}
	return n
}
