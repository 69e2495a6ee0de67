package iscsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Config says which logical unit to log in to, and how. Nothing in it may
// change while the session lives.
type Config struct {
	Portal string // host:port of the target
	// Second is another portal of the same target and portal group, for when the first one can't be reached; empty:
	// there is none. See the package comment.
	Second    string
	Target    string  // the target's name (iqn., eui. or naa.)
	LUN       uint64  // logical unit number
	Initiator string  // our name (IQN)
	ISID      [6]byte // with Initiator, the identity that reservations belong to; zero: 80 00 00 00 00 00 (random type)

	User, Secret string // CHAP; an empty user means no authentication

	// TargetUser and TargetSecret are what the target has to prove itself with (mutual CHAP, RFC 7143, section 12.1.3);
	// empty means that it needn't. An empty TargetUser with a secret takes any name.
	TargetUser, TargetSecret string

	HeaderDigest, DataDigest bool // ask for CRC32C
	InsistOnDigests          bool // refuse a target that doesn't give what HeaderDigest and DataDigest ask for

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

// complete checks the configuration and fills in defaults.
func (cfg Config) complete() (Config, error) {
	if err := checkName("target", cfg.Target); err != nil {
		return cfg, err
	}
	return cfg.completeLogin()
}

// completeLogin is complete for a login that names no target.
func (cfg Config) completeLogin() (Config, error) {
	for _, p := range cfg.portals() {
		if _, _, err := net.SplitHostPort(p); err != nil {
			return cfg, fmt.Errorf("volume portal %q: expected host:port, such as 192.168.1.10:3260", p)
		}
	}
	if cfg.Second == cfg.Portal {
		return cfg, fmt.Errorf("both portals of the volume are %s: name another one, or none", cfg.Portal)
	}
	if err := checkName("initiator", cfg.Initiator); err != nil {
		return cfg, err
	}
	if err := cfg.checkAuth(); err != nil {
		return cfg, err
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

// portals lists where to log in, the preferred one first.
func (cfg Config) portals() []string {
	if cfg.Second == "" {
		return []string{cfg.Portal}
	}
	return []string{cfg.Portal, cfg.Second}
}

// checkName tests an iSCSI name (RFC 7143, section 4.2.7).
func checkName(what, name string) error {
	if name == "" || len(name) > 223 {
		return fmt.Errorf("iSCSI %s name %.40q: expected 1 to 223 characters, such as iqn.2024-01.com.example:disk", what, name)
	}
	for _, r := range name {
		if r <= ' ' || r > '~' || r == '=' {
			return fmt.Errorf("iSCSI %s name %.40q holds %q; only letters, digits, '-', '.' and ':' are allowed", what, name, r)
		}
	}
	return nil
}

// checkAuth tests the CHAP names and secrets (RFC 7143, sections 9.2.1 and
// 12.1.3).
func (cfg Config) checkAuth() error {
	for _, s := range []string{cfg.User, cfg.Secret, cfg.TargetUser, cfg.TargetSecret} {
		if len(s) > 255 {
			return errors.New("CHAP user and password may have up to 255 characters")
		}
		if strings.ContainsRune(s, 0) {
			return errors.New("CHAP user and password can't hold a zero byte")
		}
	}
	switch {
	case cfg.TargetSecret != "" && cfg.User == "":
		return errors.New("the target can prove itself (mutual CHAP) only where a CHAP user and password are given, too")
	case cfg.TargetSecret == "" && cfg.TargetUser != "":
		return errors.New("mutual CHAP: the target's user is given, its password isn't")
	case cfg.TargetSecret != "" && cfg.TargetSecret == cfg.Secret:
		return errors.New("mutual CHAP: the target's password must differ from the initiator's, or anybody could answer with it")
	}
	return nil
}
