package iscsi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// maxInFlight limits commands of one session, waiting ones included; more
// callers wait.
const maxInFlight = 256

// Session is a logged-in session with one logical unit. All methods may be
// called concurrently.
type Session struct {
	cfg   Config
	slots chan struct{} // one per command

	noPersist atomic.Bool   // the target can't keep registrations without power
	noAbort   atomic.Bool   // the target has no PREEMPT AND ABORT
	blocks    atomic.Uint64 // of the unit; it may grow

	noWriteSame atomic.Bool // the target has no WRITE SAME(16)

	mu      sync.Mutex
	cur     *conn         // nil while offline
	change  chan struct{} // closed when cur or final changes
	offline time.Time     // since when
	lastErr error         // why
	final   error         // the session is over
	unit    unit
	logins  uint64
	portal  int // index in cfg.portals of the last login
	home    int // that of the first login
	group   int // portal group of the first login

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// unit is what is known of the logical unit. Its number of blocks is that of the
// last login.
type unit struct {
	capacity
	inquiry   Inquiry
	limits    blockLimits
	provision provisioning
}

// Dial logs in and looks at the logical unit. It tries each portal once. Errors
// name the volume and what is wrong in one line.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	s := &Session{cfg: cfg, slots: make(chan struct{}, maxInFlight), change: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	c, u, err := s.login(ctx, 0)
	if err != nil && cfg.Second != "" {
		first := err
		if c, u, err = s.login(ctx, 1); err != nil {
			err = fmt.Errorf("%w; and by its second portal %s: %w", first, cfg.Second, err)
		}
	}
	if err != nil {
		s.cancel()
		return nil, s.named(err)
	}
	s.cur, s.unit, s.logins, s.group = c, u, 1, c.p.portalGroup
	s.blocks.Store(u.blocks)
	s.wg.Add(1)
	go func() { defer s.wg.Done(); s.supervise(c) }()
	return s, nil
}

// named puts the volume's name before an error.
func (s *Session) named(err error) error {
	return fmt.Errorf("volume %s %s: %w", s.cfg.Portal, s.cfg.Target, err)
}

// login connects to one of the portals and looks at the unit.
func (s *Session) login(ctx context.Context, portal int) (*conn, unit, error) {
	st, err := connect(ctx, s.cfg, s.cfg.portals()[portal], false)
	if err != nil {
		return nil, unit{}, err
	}
	if err := s.sameGroup(st.p.portalGroup, portal); err != nil {
		st.nc.Close()
		return nil, unit{}, err
	}
	c := newConn(st, s.cfg)
	ctx, cancel := context.WithTimeout(withConn(ctx, c), s.cfg.Timeout)
	defer cancel()
	u, err := s.look(ctx)
	if err != nil {
		c.close(0)
		return nil, unit{}, err
	}
	return c, u, nil
}

// sameGroup refuses a portal of another portal group than that of the first login
// (see the package comment), also where a redirection led there. A target that
// doesn't tell its group is trusted with the portal of the first login only.
func (s *Session) sameGroup(group, portal int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := s.cfg.portals()[portal]
	switch {
	case s.logins == 0:
		s.home = portal
	case group == unknownGroup && portal != s.home:
		return fmt.Errorf("portal %s doesn't tell its portal group, so it can't stand in for the other one", name)
	case group != s.group && s.group != unknownGroup:
		return fmt.Errorf("portal %s is of the target's portal group %d, the other one of %d: commands under way there would outlive the change; "+
			"name two portals of one group", name, group, s.group)
	}
	s.portal = portal
	return nil
}

// supervise logs in again whenever the connection is lost, until Close.
func (s *Session) supervise(c *conn) {
	for {
		select {
		case <-c.dead:
		case <-s.ctx.Done():
			c.close(time.Second)
			return
		}
		c.close(0)
		s.dropped(c)
		if c = s.reconnect(); c == nil {
			return
		}
	}
}

// dropped notes that a connection is gone.
func (s *Session) dropped(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur != c {
		return
	}
	s.cur, s.offline, s.lastErr = nil, time.Now(), c.err
	s.signal()
}

// signal wakes those who wait for a change; s.mu is held.
func (s *Session) signal() {
	close(s.change)
	s.change = make(chan struct{})
}

// reconnect tries until it works (new connection) or the session is over (nil).
func (s *Session) reconnect() *conn {
	s.mu.Lock()
	since, why := s.offline, s.lastErr
	s.mu.Unlock()
	s.cfg.Notify(s.named(why).Error())
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		c, err := s.resume()
		if err == nil {
			s.cfg.Notify(fmt.Sprintf("volume %s %s: back after %v", s.usedPortal(), s.cfg.Target, time.Since(since).Round(time.Millisecond)))
			return c
		}
		s.mu.Lock()
		s.lastErr = err
		s.mu.Unlock()
		if errors.Is(err, ErrFenced) || errors.Is(err, ErrReservationConflict) || errors.Is(err, errReplaced) {
			s.end(err)
			s.cfg.Notify(s.named(err).Error())
			return nil
		}
		// up to 25 % more, so that many sessions don't come back in step
		timer := time.NewTimer(pause + time.Duration(rand.Int64N(int64(pause/4))))
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// errReplaced says that a name leads to another logical unit than before.
var errReplaced = errors.New("another logical unit is there now; restart with the right volume")

// usedPortal is the portal of the last login.
func (s *Session) usedPortal() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.portals()[s.portal]
}

// resume logs in once, to the portals in turn, beginning with the one that
// wasn't used last, and lets OnReconnect decide.
func (s *Session) resume() (*conn, error) {
	portals := s.cfg.portals()
	s.mu.Lock()
	next := s.portal + 1
	s.mu.Unlock()
	var (
		c   *conn
		u   unit
		err error
	)
	for i := range portals {
		k := (next + i) % len(portals)
		var e error
		if c, u, e = s.login(s.ctx, k); e == nil {
			err = nil
			break
		}
		if len(portals) > 1 {
			e = fmt.Errorf("%s: %w", portals[k], e)
		}
		if err == nil {
			err = e
		} else {
			err = fmt.Errorf("%w; %w", err, e)
		}
	}
	if err != nil {
		return nil, err
	}
	old := s.unit
	blocks := s.blocks.Load()
	switch {
	case u.blockSize != old.blockSize || u.blocks < blocks:
		err = fmt.Errorf("%w (%d blocks of %d bytes instead of %d of %d)", errReplaced, u.blocks, u.blockSize, blocks, old.blockSize)
	case u.inquiry.Serial != old.inquiry.Serial:
		err = fmt.Errorf("%w (serial number %q instead of %q)", errReplaced, u.inquiry.Serial, old.inquiry.Serial)
	case s.cfg.OnReconnect != nil:
		err = s.cfg.OnReconnect(withConn(s.ctx, c), s)
	}
	if err != nil {
		c.close(0)
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.final != nil {
		go c.close(0)
		return nil, s.final
	}
	s.cur, s.lastErr = c, nil
	s.blocks.Store(u.blocks)
	s.logins++
	s.signal()
	return c, nil
}

// end makes the session's end known.
func (s *Session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.final == nil {
		s.final = err
		s.cur = nil
		s.signal()
	}
}

// Close logs out and fails all commands that still wait with ErrClosed. It
// waits at most about a second.
func (s *Session) Close() error {
	s.end(ErrClosed)
	s.cancel()
	s.wg.Wait()
	return nil
}

// Logins counts logins, the first one included.
func (s *Session) Logins() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins
}

// Err tells why the session is offline or closed; nil when it's online.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.final != nil:
		return s.named(s.final)
	case s.cur == nil:
		return s.named(s.lastErr)
	}
	return nil
}

// connKey is the context key under which OnReconnect's context carries the
// connection that isn't the session's yet.
type connKey struct{}

func withConn(ctx context.Context, c *conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// online returns the connection to use, and waits for one if need be. pinned
// means that it came with ctx, and that there is no other.
func (s *Session) online(ctx context.Context) (c *conn, pinned bool, err error) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		return c, true, nil
	}
	for {
		s.mu.Lock()
		c, change, final, since, why := s.cur, s.change, s.final, s.offline, s.lastErr
		s.mu.Unlock()
		if final != nil {
			return nil, false, final
		}
		if c != nil {
			select {
			case <-c.dead:
				s.dropped(c)
				continue
			default:
				return c, false, nil
			}
		}
		left := s.cfg.MaxOffline - time.Since(since)
		if left <= 0 {
			return nil, false, fmt.Errorf("%w for %v (%w)", ErrOffline, s.cfg.MaxOffline, why)
		}
		timer := time.NewTimer(left)
		select {
		case <-change:
		case <-timer.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
		timer.Stop()
		if err != nil {
			return nil, false, err
		}
	}
}
