// Package journal keeps what happened on a host: the last events, in memory and in a file.
//
// # Place
//
// hvd/daemon adds its own events and those of its VMs' processes, and its API lists them. It imports hvd/api.
//
// # File
//
// One record a line, in the order in which the events became known, so that tools for text read it, too:
//
//	0    8  CRC-32C (Castagnoli) of the JSON, as hex digits, lower case
//	8    1  a blank
//	9    n  an api.Event as JSON, which has no line feed in it
//	9+n  1  a line feed; sum, blank, JSON and line feed are at most 32 KiB
//
// A reader takes every line whose sum is right, and skips all others. So what a power cut tears off costs the record that
// it tears, and damage in the middle costs the records that it is in; no content of the file makes reading fail. It is
// replaced as a whole (a new file that is synced and then renamed) when the journal opens, before it would grow beyond
// 1 MiB, and after any error, so that a record never follows a torn one.
//
// # When it is on the disk
//
// A goroutine of the journal's own writes and syncs what Add takes, one batch after the other: Add never waits for a
// disk, and what was added is on it as soon as the one before it is. A disk that is full, read-only or stuck costs the
// file only: the events stay in memory, up to Capacity, and the file is written anew with the next event, and each
// RetryEvery, until that succeeds.
//
//	       wake              stale or large               ok
//	idle --------> writing ------------------> replacing -----> idle
//	                 |  error                      |  error
//	                 +------> stale, told once <---+    waits for the next event, or RetryEvery
package journal

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

const (
	// Capacity is how many events are kept; the oldest go first.
	Capacity = 1000
	// RetryEvery is how often a file that couldn't be written is tried again without a new event.
	RetryEvery = 30 * time.Second

	// maxFile is the size that the file never exceeds; maxHeld is that of the records that are kept.
	maxFile = 1 << 20
	maxHeld = maxFile / 2
	// maxText bounds names and roles, in bytes.
	maxText = 64
	// closeLimit bounds how long Close waits for the disk.
	closeLimit = 2 * time.Second
)

// Journal holds events in the order of their times. Its methods may be called concurrently, and never wait for a disk.
type Journal struct {
	report func(error)
	ended  chan struct{} // closed when the writer has ended; nil: there is none
	wake   chan struct{}

	mu      sync.Mutex
	held    []record
	size    int // of all records that are held, in bytes
	known   map[identity]bool
	pending []byte // records that aren't in the file
	stale   bool   // the file must be replaced
	closing bool
}

// record is an event with what the file has of it.
type record struct {
	e    api.Event
	line []byte
}

// identity tells an event that has been merged already from a new one.
type identity struct {
	at             int64 // Unix time, ns
	host, vm, what string
}

func identify(e api.Event) identity { return identity{e.At.UnixNano(), e.Host, e.VM, e.What} }

// Memory makes a journal without a file.
func Memory() *Journal { return &Journal{known: map[identity]bool{}} }

// Open makes a journal that continues the file at path, which is made if it is missing. report is told why the file
// can't be read or written, once until it can again, which it is told by nil; it must not call the journal.
func Open(path string, report func(error)) *Journal {
	list, err := load(path)
	if err != nil {
		report(err) // and what can't be read is written anew
	}
	return begin(&file{path: path}, list, report)
}

// begin makes a journal with some events and a place to keep them.
func begin(s store, list []api.Event, report func(error)) *Journal {
	j := Memory()
	for _, e := range list {
		j.insert(e)
	}
	j.report, j.stale = report, true
	j.ended, j.wake = make(chan struct{}), make(chan struct{}, 1)
	j.wake <- struct{}{}
	go j.write(s)
	return j
}

// clean makes an event as it is kept: bounded, and its time without a monotonic part, like one that was in the file.
// It fails for a time that JSON can't hold; a VM's process may make up any.
func clean(e api.Event) (api.Event, bool) {
	e.At = e.At.Round(0).UTC()
	e.What, e.Cause = api.OneLine(e.What), api.OneLine(e.Cause)
	for _, s := range []*string{&e.Host, &e.VM, &e.Kind, &e.From, &e.Role} {
		*s = api.OneLine((*s)[:min(len(*s), maxText)])
	}
	if d := e.Divergence; d != nil {
		e.Divergence = &api.Divergence{
			Kind: api.OneLine(d.Kind), Position: d.Position, Detail: api.OneLine(d.Detail),
			Exit: d.Exit, Here: api.OneLine(d.Here), There: api.OneLine(d.There),
		}
	}
	y := e.At.Year()
	return e, y >= 1970 && y <= 9999
}

// insert puts a clean event in its place, and returns its record; nil if it isn't new.
func (j *Journal) insert(e api.Event) []byte {
	id, line := identify(e), encode(e)
	if j.known[id] || line == nil {
		return nil
	}
	full := func() bool { return len(j.held) >= Capacity || j.size+len(line) > maxHeld }
	if full() && e.At.Before(j.held[0].e.At) {
		return nil // it has been here and was dropped, or it's too old
	}
	for full() {
		delete(j.known, identify(j.held[0].e))
		j.size -= len(j.held[0].line)
		j.held = slices.Delete(j.held, 0, 1)
	}
	j.known[id] = true
	j.size += len(line)
	at := len(j.held)
	for at > 0 && j.held[at-1].e.At.After(e.At) {
		at--
	}
	j.held = slices.Insert(j.held, at, record{e, line})
	return line
}

// Add adds events, but for those that it has already.
func (j *Journal) Add(list ...api.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range list {
		if e, ok := clean(e); ok && j.ended != nil && !j.stale {
			j.pending = append(j.pending, j.insert(e)...)
		} else if ok {
			j.insert(e)
		}
	}
	if len(j.pending) > maxHeld { // the disk is slow: what is held is all that counts
		j.pending, j.stale = nil, true
	}
	if len(j.pending) > 0 || j.stale {
		j.kick()
	}
}

func (j *Journal) kick() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// List returns the events, oldest first.
func (j *Journal) List() []api.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := make([]api.Event, len(j.held))
	for i, r := range j.held {
		list[i] = r.e
	}
	return list
}

// Close has what was added written, and ends the writer. A disk that is stuck is left behind after a moment.
func (j *Journal) Close() {
	if j.ended == nil {
		return
	}
	j.mu.Lock()
	j.closing = true
	j.kick()
	j.mu.Unlock()
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	select {
	case <-j.ended:
	case <-limit.C:
	}
}

// work is what the writer has to do next.
type work struct {
	b       []byte
	replace bool
	last    bool // the journal closes
}

// take returns what isn't in the file yet; size is the file's.
func (j *Journal) take(size int) work {
	j.mu.Lock()
	defer j.mu.Unlock()
	w := work{b: j.pending, last: j.closing}
	j.pending = nil
	if j.stale || size+len(w.b) > maxFile {
		var all bytes.Buffer
		for _, r := range j.held {
			all.Write(r.line)
		}
		w.b, w.replace = all.Bytes(), true
		j.stale = false
	}
	return w
}

// write is the writer.
func (j *Journal) write(s store) {
	defer close(j.ended)
	defer s.close()
	again := time.NewTicker(RetryEvery)
	defer again.Stop()
	size, failing := 0, false
	for {
		select {
		case <-j.wake:
		case <-again.C:
			if !failing {
				continue
			}
		}
		w := j.take(size)
		var err error
		switch {
		case w.replace:
			err = s.replace(w.b)
			size = len(w.b)
		case len(w.b) > 0:
			err = s.add(w.b)
			size += len(w.b)
		}
		if err != nil {
			j.mu.Lock()
			j.stale, j.pending = true, nil
			j.mu.Unlock()
		}
		if worked := w.replace || len(w.b) > 0; (err != nil) != failing && worked {
			failing = err != nil
			j.report(err)
		}
		if w.last {
			return
		}
	}
}
