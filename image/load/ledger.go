package load

import (
	"fmt"
	"strings"
)

// maxDetails is how many findings are described in words.
const maxDetails = 8

// request is one command of a client.
type request struct {
	slot  int // of a SET; -1: INCR
	key   string
	value string // of a SET
}

func (q request) args() []string {
	if q.slot < 0 {
		return []string{"INCR", q.key}
	}
	return []string{"SET", q.key, q.value}
}

// ledger is what one client knows of its keys. It is pure.
type ledger struct {
	client string // part of its keys
	turn   uint64 // requests made

	count    int64 // last acknowledged counter
	counting bool  // an INCR is under way, and stays so if the connection broke
	values   []string
	slot     int    // of the SET under way; -1: none
	fresh    string // its value

	acknowledged int
	found        Findings
}

// Findings are what must not happen. The zero value is a clean bill.
type Findings struct {
	// Lost counts acknowledged writes that are gone: increments, and values that were replaced by others or vanished.
	Lost int
	// Backwards counts counters that were seen below what was acknowledged before.
	Backwards int
	// Doubled counts counters that ran ahead of what was asked for.
	Doubled int
	// Unread counts values that couldn't be read back, because no connection was left or the reading failed.
	Unread int
	// Unexplained counts stretches, from one Check to the next, in which what the clients read of shared keys has no
	// explanation by any order of what they did.
	Unexplained int
	// Details describes the first of them, one line each.
	Details []string
}

// OK tells that nothing was found.
func (f Findings) OK() bool {
	return f.Lost == 0 && f.Backwards == 0 && f.Doubled == 0 && f.Unread == 0 && f.Unexplained == 0
}

// String is one line.
func (f Findings) String() string {
	if f.OK() {
		return "all there"
	}
	return fmt.Sprintf("lost %d, counters that went back %d, executed twice %d, unread %d, unexplained %d: %s",
		f.Lost, f.Backwards, f.Doubled, f.Unread, f.Unexplained, strings.Join(f.Details, "; "))
}

func (f *Findings) note(n *int, by int, format string, args ...any) {
	*n += by
	if len(f.Details) < maxDetails {
		f.Details = append(f.Details, fmt.Sprintf(format, args...))
	}
}

func (f *Findings) add(o Findings) {
	f.Lost += o.Lost
	f.Backwards += o.Backwards
	f.Doubled += o.Doubled
	f.Unread += o.Unread
	f.Unexplained += o.Unexplained
	f.Details = append(f.Details, o.Details[:min(len(o.Details), maxDetails-len(f.Details))]...)
}

func newLedger(client string, slots int) *ledger {
	return &ledger{client: client, values: make([]string, slots), slot: -1}
}

func (l *ledger) counterKey() string      { return "duet:" + l.client + ":count" }
func (l *ledger) slotKey(slot int) string { return fmt.Sprintf("duet:%s:%d", l.client, slot) }

// next is the next request, which is under way from now on.
func (l *ledger) next() request {
	l.turn++
	if l.turn%2 == 1 {
		l.counting = true
		return request{slot: -1, key: l.counterKey()}
	}
	l.slot = int(l.turn / 2 % uint64(len(l.values)))
	l.fresh = fmt.Sprintf("%s-%d", l.client, l.turn)
	return request{slot: l.slot, key: l.slotKey(l.slot), value: l.fresh}
}

// acknowledge takes the reply to the request under way. An error means that it is none: the connection is useless.
func (l *ledger) acknowledge(r reply) error {
	if err := r.err(); err != nil {
		return err
	}
	if l.slot >= 0 {
		if r.kind != '+' || r.text != "OK" {
			return fmt.Errorf("SET was answered with %q %q", r.kind, r.text)
		}
		l.values[l.slot] = l.fresh
		l.slot = -1
		l.acknowledged++
		return nil
	}
	if r.kind != ':' {
		return fmt.Errorf("INCR was answered with %q %q", r.kind, r.text)
	}
	l.counting = false
	switch want := l.count + 1; {
	case r.number < want:
		l.found.note(&l.found.Backwards, 1, "%s went from %d back to %d", l.counterKey(), l.count, r.number)
		l.found.note(&l.found.Lost, int(want-r.number), "%d increments of %s", want-r.number, l.counterKey())
	case r.number > want:
		l.found.note(&l.found.Doubled, 1, "%s jumped from %d to %d", l.counterKey(), l.count, r.number)
	}
	l.count = r.number
	l.acknowledged++
	return nil
}

// keys are what there is to read back: the counter, then the slots that were written.
func (l *ledger) keys() []string {
	keys := []string{l.counterKey()}
	for i, v := range l.values {
		if v != "" || i == l.slot {
			keys = append(keys, l.slotKey(i))
		}
	}
	return keys
}

// check compares what keys were read back as, in the order of keys; a reply that is missing is unread.
func (l *ledger) check(replies []reply) Findings {
	f := l.found
	f.Details = append([]string(nil), f.Details...)
	var at int
	next := func(key string) (text string, ok bool) {
		if at >= len(replies) || replies[at].kind != '$' {
			at++
			f.note(&f.Unread, 1, "%s couldn't be read", key)
			return "", false
		}
		at++
		return replies[at-1].text, true
	}
	if text, ok := next(l.counterKey()); ok {
		l.checkCount(&f, text)
	}
	for i, v := range l.values {
		if v == "" && i != l.slot {
			continue
		}
		text, ok := next(l.slotKey(i))
		if ok && text != v && (i != l.slot || text != l.fresh) {
			f.note(&f.Lost, 1, "%s is %.40q and should be %q", l.slotKey(i), text, v)
		}
	}
	return f
}

func (l *ledger) checkCount(f *Findings, text string) {
	var n int64
	if text != "" {
		if _, err := fmt.Sscanf(text, "%d", &n); err != nil {
			f.note(&f.Lost, int(l.count), "%s is %.40q and should be %d", l.counterKey(), text, l.count)
			return
		}
	}
	most := l.count
	if l.counting {
		most++
	}
	switch {
	case n < l.count:
		f.note(&f.Backwards, 1, "%s is %d after %d was acknowledged", l.counterKey(), n, l.count)
		f.Lost += int(l.count - n)
	case n > most:
		f.note(&f.Doubled, 1, "%s is %d after %d was acknowledged", l.counterKey(), n, l.count)
	}
}
