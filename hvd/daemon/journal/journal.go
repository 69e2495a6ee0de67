// Package journal keeps what happened on a host: the last events, in memory and in a file.
//
// # Place
//
// hvd/daemon adds its own events and those of its VMs' processes, and its API lists them. It imports hvd/api.
//
// # File
//
// JSON, one api.Event a line, in the order in which they became known; a line that can't be read is skipped. It grows up
// to 1 MiB and is then written anew with what the journal holds. Losing some of it in a power cut is accepted: it is
// never synced.
package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/google/renameio/v2"
)

const (
	// Capacity is how many events are kept; the oldest go first.
	Capacity = 1000
	// maxFile is the size of the file at which it is written anew, in bytes; maxEvent that of a line.
	maxFile  = 1 << 20
	maxEvent = 8 << 10
	// maxText bounds a VM's name and role, in bytes.
	maxText = 64
)

// Journal holds events in the order of their times. Its methods may be called concurrently.
type Journal struct {
	mu     sync.Mutex
	events []api.Event
	known  map[identity]bool
	path   string
	file   *os.File // nil: memory only
	size   int64
}

// identity tells an event that has been merged already from a new one.
type identity struct {
	at       int64 // Unix time, ns
	vm, what string
}

func identify(e api.Event) identity { return identity{e.At.UnixNano(), e.VM, e.What} }

// Memory makes a journal without a file.
func Memory() *Journal { return &Journal{known: map[identity]bool{}} }

// Open makes a journal that continues the file at path, which is made if it is missing. With an error, the journal is
// there all the same, in memory only.
func Open(path string) (*Journal, error) {
	j := Memory()
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return j, err
	default:
		err := j.load(io.LimitReader(f, 2*maxFile))
		f.Close()
		if err != nil {
			return j, err
		}
	}
	j.path = path
	return j, j.rewrite()
}

// load adds the events of a file's content.
func (j *Journal) load(r io.Reader) error {
	for s := bufio.NewReaderSize(r, maxEvent); ; {
		line, err := s.ReadSlice('\n')
		var e api.Event
		if json.Unmarshal(line, &e) == nil {
			j.insert(clean(e))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// rewrite replaces the file by one with the events that are held, and opens it.
func (j *Journal) rewrite() error {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
	var b bytes.Buffer
	for _, e := range j.events {
		b.Write(encode(e))
	}
	if err := renameio.WriteFile(j.path, b.Bytes(), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	j.file, j.size = f, int64(b.Len())
	return nil
}

func encode(e api.Event) []byte {
	line, err := json.Marshal(e)
	if err != nil {
		return nil // never: insert lets no time in that JSON can't hold
	}
	return append(line, '\n')
}

// clean makes an event as it is kept: bounded, and its time without a monotonic part, like one that was in the file.
func clean(e api.Event) api.Event {
	e.At = e.At.Round(0).UTC()
	e.What, e.VM, e.Role = api.OneLine(e.What), cut(e.VM), cut(e.Role)
	return e
}

// insert puts a clean event in its place, and says whether it is new.
func (j *Journal) insert(e api.Event) bool {
	id := identify(e)
	if y := e.At.Year(); y < 1970 || y > 9999 || j.known[id] {
		return false // JSON can't hold all times that a VM's process could make up
	}
	if len(j.events) >= Capacity {
		if e.At.Before(j.events[0].At) {
			return false // it has been here and was dropped, or it's too old
		}
		delete(j.known, identify(j.events[0]))
		j.events = slices.Delete(j.events, 0, 1)
	}
	j.known[id] = true
	at := len(j.events)
	for at > 0 && j.events[at-1].At.After(e.At) {
		at--
	}
	j.events = slices.Insert(j.events, at, e)
	return true
}

func cut(s string) string { return api.OneLine(s[:min(len(s), maxText)]) }

// Add adds events, but for those that it has already. An error is about the file, which isn't written any more then.
func (j *Journal) Add(list ...api.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b []byte
	for _, e := range list {
		if e = clean(e); j.insert(e) {
			b = append(b, encode(e)...)
		}
	}
	if j.file == nil || len(b) == 0 {
		return nil
	}
	n, err := j.file.Write(b)
	j.size += int64(n)
	if err == nil && j.size > maxFile {
		err = j.rewrite()
	}
	if err != nil {
		j.drop()
	}
	return err
}

// List returns the events, oldest first.
func (j *Journal) List() []api.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.events)
}

// Close closes the file.
func (j *Journal) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.drop()
}

func (j *Journal) drop() {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
}
