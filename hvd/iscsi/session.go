package iscsi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Config says which logical unit to log in to, and how. Nothing in it may
// change while the session lives.
type Config struct {
	Portal    string  // host:port of the target
	Target    string  // the target's name (iqn., eui. or naa.)
	LUN       uint64  // logical unit number
	Initiator string  // our name (IQN)
	ISID      [6]byte // with Initiator, the identity that reservations belong to; zero: 80 00 00 00 00 00 (random type)

	User, Secret string // CHAP; an empty user means no authentication

	HeaderDigest, DataDigest bool // ask for CRC32C

	// Timeout limits a login, and how long a target may be silent; one command
	// may take three times as long. Default: 10 s.
	Timeout time.Duration
	// MaxOffline is how long commands wait for a lost target before they fail
	// with ErrOffline. Logins are tried on after it. Default: 60 s.
	MaxOffline time.Duration

	// Dial opens the connection. Default: net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// OnReconnect runs after each new login, before commands are issued again:
	// a registered key may be gone, or another host may have taken over. It
	// must pass ctx to the session's methods; these then run on the new
	// connection at once. An error means another try, or the end of the
	// session when it is ErrFenced or ErrReservationConflict.
	OnReconnect func(ctx context.Context, s *Session) error

	// Notify is told in one line when the connection is lost and when it is
	// back. It must not call the session. May be nil.
	Notify func(event string)
}

// maxInFlight limits commands of one session, waiting ones included; more
// callers wait.
const maxInFlight = 256

// Session is a logged-in session with one logical unit. All methods may be
// called concurrently.
type Session struct {
	cfg   Config
	slots chan struct{} // one per command

	noPersist atomic.Bool // the target can't keep registrations without power

	mu      sync.Mutex
	cur     *conn         // nil while offline
	change  chan struct{} // closed when cur or final changes
	offline time.Time     // since when
	lastErr error         // why
	final   error         // the session is over
	unit    unit
	logins  uint64

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// unit is what is known of the logical unit.
type unit struct {
	capacity
	inquiry Inquiry
	limits  blockLimits
}

// Dial logs in and looks at the logical unit. It tries once. Errors name the
// volume and what is wrong in one line.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	s := &Session{cfg: cfg, slots: make(chan struct{}, maxInFlight), change: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	c, u, err := s.login(ctx)
	if err != nil {
		s.cancel()
		return nil, s.named(err)
	}
	s.cur, s.unit, s.logins = c, u, 1
	s.wg.Add(1)
	go func() { defer s.wg.Done(); s.supervise(c) }()
	return s, nil
}

// complete checks the configuration and fills in defaults.
func (cfg Config) complete() (Config, error) {
	if _, _, err := net.SplitHostPort(cfg.Portal); err != nil {
		return cfg, fmt.Errorf("volume portal %q: expected host:port, such as 192.168.1.10:3260", cfg.Portal)
	}
	for _, n := range []struct{ what, name string }{{"target", cfg.Target}, {"initiator", cfg.Initiator}} {
		if n.name == "" || len(n.name) > 223 {
			return cfg, fmt.Errorf("iSCSI %s name %.40q: expected 1 to 223 characters, such as iqn.2024-01.com.example:disk", n.what, n.name)
		}
		for _, r := range n.name {
			if r <= ' ' || r > '~' || r == '=' {
				return cfg, fmt.Errorf("iSCSI %s name %.40q holds %q; only letters, digits, '-', '.' and ':' are allowed", n.what, n.name, r)
			}
		}
	}
	if len(cfg.User) > 255 || len(cfg.Secret) > 255 {
		return cfg, errors.New("CHAP user and password may have up to 255 characters")
	}
	if cfg.ISID == ([6]byte{}) {
		cfg.ISID[0] = 0x80
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.MaxOffline <= 0 {
		cfg.MaxOffline = 60 * time.Second
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	return cfg, nil
}

// named puts the volume's name before an error.
func (s *Session) named(err error) error {
	return fmt.Errorf("volume %s %s: %w", s.cfg.Portal, s.cfg.Target, err)
}

// login connects and looks at the unit.
func (s *Session) login(ctx context.Context) (*conn, unit, error) {
	st, err := connect(ctx, s.cfg)
	if err != nil {
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
			s.cfg.Notify(fmt.Sprintf("volume %s %s: back after %v", s.cfg.Portal, s.cfg.Target, time.Since(since).Round(time.Millisecond)))
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

// resume logs in once and lets OnReconnect decide.
func (s *Session) resume() (*conn, error) {
	c, u, err := s.login(s.ctx)
	if err != nil {
		return nil, err
	}
	old := s.unit
	switch {
	case u.blockSize != old.blockSize || u.blocks < old.blocks:
		err = fmt.Errorf("%w (%d blocks of %d bytes instead of %d of %d)", errReplaced, u.blocks, u.blockSize, old.blocks, old.blockSize)
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
