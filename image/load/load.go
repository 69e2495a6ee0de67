package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Config describes the clients.
type Config struct {
	// Dial makes a connection to the server.
	Dial func(ctx context.Context) (net.Conn, error)
	// Clients is how many there are. Default: 8.
	Clients int
	// Slots is how many keys each client sets in turn, and so how many values it can read back. Default: 1000.
	Slots int
	// Shared is how many keys all clients read and write, every third request of each; their history is judged by
	// porcupine. Default: none.
	Shared int
	// Pause is how long a client waits between an answer and its next request. Default: 20 ms.
	Pause time.Duration
	// Timeout is how long a client waits for an answer before it takes the connection for lost. Default: 90 s.
	Timeout time.Duration
}

// Load are running clients.
type Load struct {
	clients []*client
	dial    func(ctx context.Context) (net.Conn, error)
	share   *share // nil: no key is shared
	timeout time.Duration
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	rec     recorder
	newest  []time.Time   // for each connection, when its newest answered request was sent
	broken  error         // how the first connection broke
	changed chan struct{} // closed and replaced at each answer, and when a connection breaks
}

// Start connects all clients and sets them to work. Cancelling ctx ends them, as Close does.
func Start(ctx context.Context, cfg Config) (*Load, error) {
	setDefault(&cfg.Clients, 8)
	setDefault(&cfg.Slots, 1000)
	setDefault(&cfg.Pause, 20*time.Millisecond)
	setDefault(&cfg.Timeout, 90*time.Second)
	l := &Load{dial: cfg.Dial, timeout: cfg.Timeout, newest: make([]time.Time, cfg.Clients), changed: make(chan struct{})}
	for i := range cfg.Clients {
		conn, err := cfg.Dial(ctx)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("client %d can't connect: %w", i, err), l.closeConns())
		}
		c := &client{
			number: i, conn: conn, in: newReplyReader(conn), turn: make(chan struct{}, 1),
			ledger: newLedger(fmt.Sprint(i), cfg.Slots), timeout: cfg.Timeout, pause: cfg.Pause, note: l.answer, lost: l.lose,
		}
		c.give()
		l.clients = append(l.clients, c)
	}
	if cfg.Shared > 0 {
		if err := l.beginShared(cfg.Shared); err != nil {
			return nil, errors.Join(err, l.closeConns())
		}
	}
	l.rec.begin(time.Now(), cfg.Clients)
	ctx, l.cancel = context.WithCancel(ctx)
	for _, c := range l.clients {
		l.wg.Go(func() { c.run(ctx) })
	}
	l.wg.Go(func() { // a client that waits for an answer must notice
		<-ctx.Done()
		_ = l.closeConns() // they are of no more use
	})
	return l, nil
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (l *Load) closeConns() error {
	var errs []error
	for _, c := range l.clients {
		errs = append(errs, c.conn.Close())
	}
	return errors.Join(errs...)
}

// Close ends the clients.
func (l *Load) Close() {
	l.cancel()
	l.wg.Wait()
}

func (l *Load) answer(connection int, sent, got time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.answer(connection, sent, got)
	l.newest[connection] = sent
	l.signal()
}

func (l *Load) lose(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = err
	}
	l.signal()
}

func (l *Load) signal() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Window ends the present window of time, begins the next, and returns the one that has ended.
func (l *Load) Window() Window {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	w := l.rec.end(now)
	l.rec.begin(now, len(l.clients))
	return w
}

// Answered waits until every connection has got an answer to a request that it sent after this call. It fails as soon
// as one has broken.
func (l *Load) Answered(ctx context.Context) error {
	from := time.Now()
	for {
		l.mu.Lock()
		waiting := 0
		for _, t := range l.newest {
			if !t.After(from) {
				waiting++
			}
		}
		changed, broken := l.changed, l.broken
		l.mu.Unlock()
		if broken != nil {
			return broken
		}
		if waiting == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d connections wait for an answer since %s ago: %w",
				waiting, len(l.clients), time.Since(from).Round(time.Millisecond), context.Cause(ctx))
		}
	}
}

// Pause lets no client make a request after the one that it makes, until resume is called.
func (l *Load) Pause(ctx context.Context) (resume func(), err error) {
	for i, c := range l.clients {
		if err := c.take(ctx); err != nil {
			for _, d := range l.clients[:i] {
				d.give()
			}
			return nil, fmt.Errorf("client %d waits for an answer: %w", i, err)
		}
	}
	return sync.OnceFunc(func() {
		for _, c := range l.clients {
			c.give()
		}
	}), nil
}

// Result is where the clients stand.
type Result struct {
	// Connections is how many there are, Resets how many of them broke.
	Connections, Resets int
	// Acknowledged counts writes that the server acknowledged.
	Acknowledged int
	Findings
	// Broken is how the first connection broke.
	Broken error
}

// Clean tells that no connection broke and no write was lost.
func (r Result) Clean() bool { return r.Resets == 0 && r.OK() }

// Check stops the clients for a moment and reads all back that was acknowledged, each client's over its own
// connection, or over another one if that is broken. It must not be called while Pause holds.
func (l *Load) Check(ctx context.Context) (Result, error) {
	resume, err := l.Pause(ctx)
	if err != nil {
		return Result{}, err
	}
	defer resume()
	replies := make([][]reply, len(l.clients))
	var wg sync.WaitGroup
	for i, c := range l.clients {
		if c.broken == nil {
			wg.Go(func() { replies[i], _ = c.read(c.ledger.keys()) }) // the error is the client's from now on
		}
	}
	wg.Wait()
	result := Result{Connections: len(l.clients)}
	for i, c := range l.clients {
		if c.broken != nil {
			replies[i] = l.readOver(ctx, c.ledger.keys())
		}
	}
	for i, c := range l.clients {
		if c.broken != nil {
			result.Resets++
		}
		result.Acknowledged += c.ledger.acknowledged
		result.add(c.ledger.check(replies[i]))
	}
	if l.share != nil {
		result.add(l.share.check(l.readOver(ctx, l.share.names())))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	result.Broken = l.broken
	return result, context.Cause(ctx)
}

// beginShared reads what the shared keys are, and has the clients use them from now on.
func (l *Load) beginShared(keys int) error {
	s := &share{history: newHistory(keys), begun: time.Now()}
	replies, err := l.clients[0].read(s.names())
	if err != nil {
		return err
	}
	for i, r := range replies {
		s.history.start[i] = r.text
	}
	l.share = s
	for _, c := range l.clients {
		c.share = s
	}
	return nil
}

// readOver reads keys over the first connection that works, or over a new one if none does.
func (l *Load) readOver(ctx context.Context, keys []string) []reply {
	for _, c := range l.clients {
		if c.broken == nil {
			if replies, err := c.read(keys); err == nil {
				return replies
			}
		}
	}
	conn, err := l.dial(ctx)
	if err != nil {
		return nil
	}
	defer conn.Close()
	c := &client{conn: conn, in: newReplyReader(conn), timeout: l.timeout, lost: func(error) {}}
	replies, _ := c.read(keys) // what is missing is unread
	return replies
}
