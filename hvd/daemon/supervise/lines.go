package supervise

import (
	"bytes"
	"sync"
)

// maxLine is the longest line of a process that is passed on, in bytes; the rest of a longer one is dropped.
const maxLine = 4 << 10

// lines is a Writer that passes on whole lines.
type lines struct {
	pass func(line string)

	mu   sync.Mutex
	part []byte // of a line that isn't complete
	over bool   // the line was too long and has been passed on
	last string // the last line that isn't empty
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		piece, rest, whole := bytes.Cut(p, []byte("\n"))
		p = rest
		if !l.over {
			l.part = append(l.part, piece[:min(len(piece), maxLine-len(l.part))]...)
			if whole || len(l.part) == maxLine {
				l.emit()
				l.over = !whole
			}
		} else if whole {
			l.over = false
		}
	}
	return n, nil
}

// emit passes the line on that has been collected.
func (l *lines) emit() {
	line := string(bytes.TrimRight(l.part, "\r "))
	l.part = l.part[:0]
	if line != "" {
		l.last = line
		l.pass(line)
	}
}

// end passes on what isn't a whole line, and returns the last line that was written.
func (l *lines) end() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.emit()
	l.over = false
	return l.last
}
