package load

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	// sharedEach is how often a client uses a shared key: every third request.
	sharedEach = 3
	// maxHistory is how many operations of a stretch are judged; what comes beyond isn't noted until the next Check.
	maxHistory = 1 << 17
	// judgeFor bounds the search for an order; a history of few clients takes milliseconds.
	judgeFor = 20 * time.Second
)

// access is an operation on a key that all clients share.
type access struct {
	key   int
	read  bool
	value string // that is written
}

func sharedKey(n int) string { return fmt.Sprintf("duet:shared:%d", n) }

func (a access) args() []string {
	if a.read {
		return []string{"GET", sharedKey(a.key)}
	}
	return []string{"SET", sharedKey(a.key), a.value}
}

// accept checks the kind of the reply.
func (a access) accept(r reply) error {
	if err := r.err(); err != nil {
		return err
	}
	if a.read && r.kind != '$' || !a.read && (r.kind != '+' || r.text != "OK") {
		return fmt.Errorf("%v was answered with %q %q", a.args(), r.kind, r.text)
	}
	return nil
}

// share is the clients' history of the shared keys, under a lock.
type share struct {
	mu      sync.Mutex
	history *history
	begun   time.Time
	broken  Findings // of earlier stretches
}

// names are the shared keys.
func (s *share) names() []string {
	names := make([]string, s.history.keys)
	for i := range names {
		names[i] = sharedKey(i)
	}
	return names
}

// next is a client's n-th access: the keys in turn, and of each as many reads as writes.
func (s *share) next(client, n int) access {
	a := access{key: (n + client) % s.history.keys, read: (n/s.history.keys+client)%2 == 0}
	if !a.read {
		a.value = fmt.Sprintf("%d-%d", client, n)
	}
	return a
}

func (s *share) add(client int, a access, got string, call, end time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.add(client, a, got, call.Sub(s.begun), end.Sub(s.begun))
}

func (s *share) lose(client int, a access, call time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.lose(client, a, call.Sub(s.begun))
}

// check judges the stretch that ends now, while no client waits for an answer; replies are what the keys were read as.
// What was found before counts on.
func (s *share) check(replies []reply) Findings {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := make([]string, s.history.keys)
	var unread Findings
	for i := range now {
		if i >= len(replies) || replies[i].kind != '$' {
			unread.note(&unread.Unread, 1, "%s couldn't be read", sharedKey(i))
			continue
		}
		now[i] = replies[i].text
	}
	if unread.Unread == 0 {
		if err := s.history.judge(now, time.Since(s.begun)); err != nil {
			s.broken.note(&s.broken.Unexplained, 1, "%v", err)
		}
	}
	f := s.broken
	f.Details = append([]string(nil), f.Details...)
	f.add(unread)
	return f
}

// history is what all clients did to the shared keys, and what they were told. It is pure.
type history struct {
	keys  int
	start []string // the keys' values when the present stretch began
	done  []porcupine.Operation
	open  []porcupine.Operation // writes of broken connections: they may take place at any time, or never
}

func newHistory(keys int) *history { return &history{keys: keys, start: make([]string, keys)} }

// add notes an operation that a client made from call to end, and what a read returned.
func (h *history) add(client int, a access, got string, call, end time.Duration) {
	if len(h.done) < maxHistory {
		h.done = append(h.done, porcupine.Operation{ClientId: client, Input: a, Output: got, Call: int64(call), Return: int64(end)})
	}
}

// lose notes a write whose answer will never come.
func (h *history) lose(client int, a access, call time.Duration) {
	if !a.read {
		h.open = append(h.open, porcupine.Operation{ClientId: client, Input: a, Call: int64(call), Return: math.MaxInt64})
	}
}

// judge ends a stretch at a moment at which no client waits for an answer, and the shared keys have the values of now. It
// says what is wrong: that no order of all operations, each between its request and its answer, explains every value that
// was read.
func (h *history) judge(now []string, at time.Duration) error {
	all := append(append([]porcupine.Operation{}, h.done...), h.open...)
	for k, v := range now {
		all = append(all, porcupine.Operation{Input: access{key: k, read: true}, Output: v, Call: int64(at), Return: int64(at)})
	}
	result := porcupine.CheckOperationsTimeout(register(h.start), all, judgeFor)
	ops := len(all)
	h.start, h.done = now, nil
	switch result {
	case porcupine.Illegal:
		return fmt.Errorf("no order of the clients' %d operations on shared keys explains what they read", ops)
	case porcupine.Unknown:
		return fmt.Errorf("no order of the clients' %d operations on shared keys was found in %v", ops, judgeFor)
	}
	return nil
}

// register is a key as the clients see it: a value that writes replace and reads return.
func register(start []string) porcupine.Model {
	type state struct {
		known bool // the key, by the first operation on it
		value string
	}
	return porcupine.Model{
		Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
			parts := make([][]porcupine.Operation, len(start))
			for _, o := range all {
				k := o.Input.(access).key
				parts[k] = append(parts[k], o)
			}
			return parts
		},
		Init: func() any { return state{} },
		Step: func(s, input, output any) (bool, any) {
			now, a := s.(state), input.(access)
			if !now.known {
				now = state{true, start[a.key]}
			}
			if a.read {
				return output == now.value, now
			}
			return true, state{true, a.value}
		},
	}
}
