package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// maxHandshakes is how many connections may be without a finished
	// handshake. Above, the oldest gives way, so that a stranger who opens
	// connections and stays silent can't lock the peer out.
	maxHandshakes = 8

	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// steady is how long a stream must last for the back-off to start anew.
	steady = 5 * time.Second

	beaconBusy = 200 * time.Millisecond // between beacons without a stream
	beaconIdle = time.Second            // with one
	// patience is how long the absence of the peer's beacons is no trouble.
	patience = 3 * time.Second
)

// errNoAddress says that no beacon of the peer has come yet.
var errNoAddress = errors.New("no address of the peer")

// Link keeps one stream and the datagrams of one VM going. See New.
type Link struct {
	cfg        Config
	secure     secure
	keys       macKeys
	paths      []*path // the direct one first
	traffic    traffic
	trips      trips
	complaints complaints

	mu      sync.Mutex
	current *Conn // being served
	next    *Conn // made, not yet served
	offered chan struct{}
}

// Run keeps the link going until ctx ends, then closes the stream and returns
// once every goroutine has ended. It is called once.
func (l *Link) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, p := range l.paths {
		wg.Go(func() { p.run(ctx) })
	}
	wg.Go(func() { l.beacons(ctx) })
	wg.Go(func() { l.echo(ctx) })
	if l.cfg.dials() {
		wg.Go(func() { l.dial(ctx) })
	} else {
		wg.Go(func() { l.accept(ctx) })
	}
	for c := l.take(ctx); c != nil; c = l.take(ctx) {
		l.serve(ctx, c)
	}
	wg.Wait()
	// One may have been made while the rest ended.
	if l.next != nil {
		l.next.drop(ErrClosed)
	}
}

// SendHeartbeat sends a payload of at most MaxHeartbeat bytes on every path
// whose peer address is known. What can't be sent is counted.
func (l *Link) SendHeartbeat(payload []byte) error {
	if len(payload) > MaxHeartbeat {
		return fmt.Errorf("heartbeat of %d bytes, limit %d", len(payload), MaxHeartbeat)
	}
	for _, p := range l.paths {
		p.heartbeat(payload)
	}
	return nil
}

// offer hands a new stream to Run. It replaces the one before.
func (l *Link) offer(c *Conn) {
	l.mu.Lock()
	skipped, current := l.next, l.current
	l.next = c
	l.mu.Unlock()
	if skipped != nil {
		skipped.drop(ErrReplaced)
	}
	if current != nil {
		current.Abort(ErrReplaced)
	}
	select {
	case l.offered <- struct{}{}:
	default:
	}
}

// take waits for a stream; nil when ctx ends.
func (l *Link) take(ctx context.Context) *Conn {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.offered:
		}
		l.mu.Lock()
		l.current, l.next = l.next, nil
		c := l.current
		l.mu.Unlock()
		if c != nil {
			return c
		}
	}
}

// serve runs a stream from Up to Down.
func (l *Link) serve(ctx context.Context, c *Conn) {
	l.traffic.streams.Add(1)
	l.traffic.up.Store(true)
	for _, p := range l.paths {
		p.pin(c.peer.Incarnation)
	}
	stop := context.AfterFunc(ctx, func() { c.Close("its process is being stopped") })
	var wg sync.WaitGroup
	wg.Go(c.write)
	l.cfg.Handler.Up(c)
	c.read(l.cfg.Handler)
	wg.Wait()
	stop()
	for _, p := range l.paths {
		p.unpin()
	}
	l.traffic.up.Store(false)
	l.mu.Lock()
	l.current = nil
	l.mu.Unlock()
	l.cfg.Handler.Down(c, c.err)
	close(c.done)
}

// dial makes a stream whenever there is none.
func (l *Link) dial(ctx context.Context) {
	direct := l.paths[0]
	backoff := minBackoff
	for ctx.Err() == nil {
		c, err := l.connect(ctx, direct)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, errNoAddress) {
				l.complain(err)
			}
			if pause(ctx, direct.heard, backoff) {
				backoff = min(2*backoff, maxBackoff)
			}
			continue
		}
		since := time.Now()
		l.offer(c)
		select {
		case <-c.done:
		case <-ctx.Done():
			return
		}
		if time.Since(since) >= steady {
			backoff = minBackoff
		}
		pause(ctx, nil, backoff)
		backoff = min(2*backoff, maxBackoff)
	}
}

func (l *Link) connect(ctx context.Context, direct *path) (*Conn, error) {
	to := direct.peerAddr()
	if !to.IsValid() {
		return nil, errNoAddress
	}
	raw, err := direct.dialTCP(ctx, to)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("host %q at %v is up, but doesn't run its process for this VM: %w", l.cfg.Peer.Name, to, err)
	case err != nil:
		return nil, fmt.Errorf("peer %q at %v: %w", l.cfg.Peer.Name, to, err)
	}
	return l.handshake(ctx, raw, true)
}

// accept takes the streams that the peer makes.
func (l *Link) accept(ctx context.Context) {
	for ctx.Err() == nil {
		ln, err := l.paths[0].listenTCP(ctx)
		if err != nil {
			l.complain(fmt.Errorf("listen for the peer: %w", err))
			pause(ctx, nil, maxBackoff/2)
			continue
		}
		l.acceptFrom(ctx, ln)
	}
}

// acceptFrom takes streams from one listener until it fails or ctx ends.
func (l *Link) acceptFrom(ctx context.Context, ln net.Listener) {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = ln.Close() }()
	var waiting handshakes
	for {
		raw, err := ln.Accept()
		if err != nil {
			if ctx.Err() == nil {
				l.complain(fmt.Errorf("listen for the peer: %w", err))
				pause(ctx, nil, minBackoff)
			}
			return
		}
		waiting.add(raw)
		wg.Go(func() {
			defer waiting.remove(raw)
			if err := tune(raw, l.cfg.Stall); err != nil {
				_ = raw.Close()
				l.complain(err)
				return
			}
			c, err := l.handshake(ctx, raw, false)
			switch {
			case err == nil:
				l.offer(c)
			case ctx.Err() == nil && !errors.Is(err, net.ErrClosed):
				l.traffic.refused.Add(1)
				l.complain(err)
			}
		})
	}
}

// handshakes are the connections that haven't finished theirs, oldest first.
type handshakes struct {
	mu   sync.Mutex
	list []net.Conn
}

// add notes a connection and closes the oldest if there are too many.
func (h *handshakes) add(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.list = append(h.list, c); len(h.list) > maxHandshakes {
		_ = h.list[0].Close()
		h.list = h.list[1:]
	}
}

func (h *handshakes) remove(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, o := range h.list {
		if o == c {
			h.list = append(h.list[:i], h.list[i+1:]...)
			return
		}
	}
}

// beacons sends beacons until ctx ends, and says so when none of the peer's
// have come for some time.
func (l *Link) beacons(ctx context.Context) {
	start := time.Now()
	for {
		for _, p := range l.paths {
			p.beacon()
		}
		d := beaconBusy
		if l.traffic.up.Load() {
			d = beaconIdle
		}
		if direct := l.paths[0]; !direct.peerAddr().IsValid() && time.Since(start) > patience {
			l.complain(fmt.Errorf("no sign of host %q on %s: is it up, and the cable in?", l.cfg.Peer.Name, direct.cfg.Interface))
		}
		if pause(ctx, nil, d); ctx.Err() != nil {
			return
		}
	}
}

// pause waits for d, a signal or the end of ctx, and tells whether it was d.
func pause(ctx context.Context, signal <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-signal:
	case <-ctx.Done():
	}
	return false
}

// complaints keeps Trouble from repeating itself.
type complaints struct {
	mu     sync.Mutex
	last   string
	at     time.Time
	bucket bucket
}

// complain passes err on to the handler, unless it has just heard it.
func (l *Link) complain(err error) {
	const repeat = 30 * time.Second
	c, now, text := &l.complaints, time.Now(), err.Error()
	c.mu.Lock()
	skip := (text == c.last && now.Sub(c.at) < repeat) || !c.bucket.allow(now)
	if !skip {
		c.last, c.at = text, now
	}
	c.mu.Unlock()
	if !skip {
		l.cfg.Handler.Trouble(err)
	}
}
