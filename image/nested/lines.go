package nested

import (
	"bytes"
	"io"
	"sync"
)

// maxLine is the longest line that is handed on whole, in bytes.
const maxLine = 1 << 20

// lineWriter hands on whole lines, without the carriage returns of a serial
// port, and notes of others between them.
type lineWriter struct {
	mu      sync.Mutex
	to      io.Writer
	partial []byte
}

// Write implements io.Writer.
func (w *lineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partial = append(w.partial, b...)
	for {
		line, rest, whole := bytes.Cut(w.partial, []byte("\n"))
		if !whole {
			break
		}
		w.line(line)
		w.partial = rest
	}
	if len(w.partial) > maxLine {
		w.line(w.partial)
		w.partial = nil
	}
	return len(b), nil
}

func (w *lineWriter) line(b []byte) {
	// The console's log has it too, so an error of the reader's isn't worth the test.
	_, _ = w.to.Write(append(bytes.TrimRight(b, "\r"), '\n'))
}

// note puts a line in between.
func (w *lineWriter) note(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line([]byte(line))
}
