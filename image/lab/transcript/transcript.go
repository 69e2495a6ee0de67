// Package transcript keeps what a machine or a program prints, line by line, and waits for a line of it.
//
// Used by image/lab and image/lab/qemu. Imports nothing of ours.
package transcript

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

const (
	// maxLines is how many lines are kept for searching.
	maxLines = 20000
	// maxLine is the longest line that is kept whole, in bytes.
	maxLine = 4096
	// tailLines is how much of the end an error shows.
	tailLines = 12
)

// Log is the output so far. It is an io.Writer; writes never fail.
type Log struct {
	mu      sync.Mutex
	lines   []string
	dropped int // lines before lines[0]
	partial []byte
	ended   bool
	changed chan struct{} // closed and replaced at each change
	bytes   uint64
}

// New makes an empty transcript.
func New() *Log { return &Log{changed: make(chan struct{})} }

// Write adds output.
func (l *Log) Write(b []byte) (int, error) {
	l.add(b)
	return len(b), nil
}

// End tells those who wait that there will be no more output.
func (l *Log) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.signal()
}

func (l *Log) add(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += uint64(len(b))
	for len(b) > 0 {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		l.partial = append(l.partial, line...)
		b = rest
		if !whole {
			if len(l.partial) <= maxLine {
				break
			}
		}
		l.lines = append(l.lines, strings.TrimRight(string(l.partial), "\r"))
		l.partial = l.partial[:0]
		if len(l.lines) > maxLines {
			l.lines = l.lines[maxLines/2:]
			l.dropped += maxLines / 2
		}
	}
	l.signal()
}

func (l *Log) signal() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Mark is a place in the output: what comes next.
type Mark int

// Now marks the present end of the output.
func (l *Log) Now() Mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Mark(l.dropped + len(l.lines))
}

// Wait returns the first line at or after from that re matches, a line without its end too, as a prompt is. It fails
// when ctx ends or the machine does; the error shows the end of the output.
func (l *Log) Wait(ctx context.Context, re *regexp.Regexp, from Mark) (string, error) {
	next := int(from)
	for {
		l.mu.Lock()
		for next = max(next, l.dropped); next < l.dropped+len(l.lines); next++ {
			if line := l.lines[next-l.dropped]; re.MatchString(line) {
				l.mu.Unlock()
				return line, nil
			}
		}
		if re.Match(l.partial) {
			line := string(l.partial)
			l.mu.Unlock()
			return line, nil
		}
		changed, ended := l.changed, l.ended
		l.mu.Unlock()
		if ended {
			return "", fmt.Errorf("it ended before it printed %q; its last lines:\n%s", re, l.Tail())
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("no line %q: %w; its last lines:\n%s", re, context.Cause(ctx), l.Tail())
		}
	}
}

// Lines returns the lines at or after from that are kept.
func (l *Log) Lines(from Mark) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines[min(max(int(from)-l.dropped, 0), len(l.lines)):]...)
}

// Find returns the first line kept that re matches, or nothing.
func (l *Log) Find(re *regexp.Regexp) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if re.MatchString(line) {
			return line
		}
	}
	return ""
}

// Tail is the last lines of the output.
func (l *Log) Tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines[max(0, len(l.lines)-tailLines):]
	return strings.Join(append(append([]string{}, lines...), string(l.partial)), "\n")
}

// Bytes is how much was printed.
func (l *Log) Bytes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}
