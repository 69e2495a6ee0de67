package console

import "fmt"

// history is how many typed bytes a Typist keeps, should the primary die before its secondary knew of them: much more
// than a guest takes in the time that a secondary may lag behind.
const history = 64 << 10

// Typist is a client's input: what waits to be typed, and what is. It is pure; the package comment has the picture.
type Typist struct {
	typed   uint64 // the guest's count, as of the end of done
	done    []byte // typed, oldest first
	pending []byte // of these, the first sent bytes are on their way
	sent    int
	begun   bool
}

// Waiting is how many bytes aren't typed yet.
func (t *Typist) Waiting() int { return len(t.pending) }

// Add appends input. How much may wait is the caller's to limit, by Waiting.
func (t *Typist) Add(p []byte) { t.pending = append(t.pending, p...) }

// Next returns the next bytes to send, at most MaxInput, or nil when nothing waits or the window is full.
func (t *Typist) Next() []byte {
	n := min(len(t.pending)-t.sent, Window-t.sent, MaxInput)
	if n <= 0 {
		return nil
	}
	p := t.pending[t.sent : t.sent+n : t.sent+n]
	t.sent += n
	return p
}

// Taken notes that the guest's count is typed after count more bytes of this client.
func (t *Typist) Taken(typed, count uint64) error {
	if count == 0 || count > uint64(t.sent) {
		return fmt.Errorf("%w: %d bytes are typed of %d that were sent", ErrFrame, count, t.sent)
	}
	if typed-count != t.typed {
		t.done = nil // somebody else typed in between: what is older can't be told apart any more
	}
	t.advance(int(count))
	t.typed = typed
	return nil
}

// advance moves n pending bytes to those that are typed.
func (t *Typist) advance(n int) {
	t.done = append(t.done, t.pending[:n]...)
	t.pending = append([]byte(nil), t.pending[n:]...)
	t.sent = max(0, t.sent-n)
	if len(t.done) > 2*history {
		t.done = append([]byte(nil), t.done[len(t.done)-history:]...)
	}
}

// Resumed begins a new stream, to a guest whose count is typed: what the guest doesn't know is to be sent again. lost is
// how many bytes may never have been typed, since the guest was started anew or somebody else typed as well.
func (t *Typist) Resumed(typed uint64) (lost int) {
	back, ahead := t.typed-typed, typed-t.typed
	switch {
	case !t.begun:
	case back <= uint64(len(t.done)): // it lost what the primary hadn't told it yet
		at := len(t.done) - int(back)
		t.pending = append(append([]byte(nil), t.done[at:]...), t.pending...)
		t.done = t.done[:at]
	case ahead <= uint64(t.sent): // it was typed, and the answer was lost
		t.advance(int(ahead))
	default:
		lost = t.sent
		t.done, t.pending = nil, append([]byte(nil), t.pending[t.sent:]...)
	}
	t.begun, t.typed, t.sent = true, typed, 0
	return lost
}
