package pairing

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/duet-ft/duet/ftlink/pairing/spake2"
)

// purpose separates codes and confirmations of this protocol from all others'.
const purpose = "duet pairing 1"

// Side is a host.
type Side struct {
	Name string
	Key  ed25519.PublicKey
}

// Config is what a run needs to know.
type Config struct {
	Self Side
	// PeerKey is the key that the other end of the TLS connection holds.
	PeerKey ed25519.PublicKey
	// Binding is the exporter value of the TLS connection.
	Binding []byte
	Code    Code
	// Secret is random, fresh for each run.
	Secret [spake2.SecretSize]byte
	// Settings go to the partner once it is proven to be the right one, at most MaxPayload bytes.
	Settings []byte
}

// Errors of a run that people can do something about.
var (
	// ErrCode says that the codes differ, or that somebody is in between.
	ErrCode = errors.New("the pairing code is wrong, or it's another host's; it counts no more: use the new one that is shown")
	// ErrSelf says that both ends have the same key.
	ErrSelf = errors.New("the other host has this host's own key: each disk must be written from the image, not copied from a host")
	// ErrRefused says that the other side ended the run, and why.
	ErrRefused = errors.New("the other host refuses")
)

type state uint8

const (
	helloDue state = iota
	confirmDue
	settingsDue
	finished
	failed
)

// Run is one side of one run.
//
//	joiner: helloDue --hello/confirm--> confirmDue --confirm/--> settingsDue --settings/settings--> finished
//	shower: helloDue --hello/hello--> confirmDue --confirm/confirm, settings--> settingsDue --settings/--> finished
//
// Anything else makes it failed. The partner is proven from settingsDue on.
type Run struct {
	cfg     Config
	joins   bool
	state   state
	pake    *spake2.Run
	peer    string
	outcome Outcome
	got     []byte
}

// Join is the run of the host at which the code was typed; first is what it sends first.
func Join(cfg Config) (r *Run, first Frame, err error) {
	if r, err = newRun(cfg, spake2.A); err != nil {
		return nil, Frame{}, err
	}
	r.joins = true
	return r, hello(cfg.Self.Name, r.pake.Share()), nil
}

// Show is the run of the host that shows the code.
func Show(cfg Config) (*Run, error) { return newRun(cfg, spake2.B) }

func newRun(cfg Config, role spake2.Role) (*Run, error) {
	switch {
	case len(cfg.Self.Key) != ed25519.PublicKeySize || len(cfg.PeerKey) != ed25519.PublicKeySize:
		return nil, errors.New("a host key that is none")
	case cfg.Self.Key.Equal(cfg.PeerKey):
		return nil, ErrSelf
	case !IsName(cfg.Self.Name):
		return nil, fmt.Errorf("this host's name %.70q is none", cfg.Self.Name)
	case len(cfg.Settings) > MaxPayload:
		return nil, fmt.Errorf("settings of %d bytes, limit %d", len(cfg.Settings), MaxPayload)
	}
	return &Run{cfg: cfg, pake: spake2.New(role, spake2.Password(string(cfg.Code), purpose), cfg.Secret)}, nil
}

// Step takes a frame of the other side and returns what to send. After an error nothing counts any more; the error is a line
// for people.
func (r *Run) Step(f Frame) (out []Frame, err error) {
	if out, err = r.step(f); err != nil && r.state != finished {
		r.state = failed
	}
	return out, err
}

func (r *Run) step(f Frame) ([]Frame, error) {
	if err := f.check(len(f.Payload)); err != nil {
		return nil, err
	}
	switch {
	case f.Type == TypeRefusal:
		return nil, fmt.Errorf("%w: %.*q", ErrRefused, maxRefusal, f.Payload)
	case r.state == helloDue && f.Type == TypeHello:
		return r.hello(f.Payload)
	case r.state == confirmDue && f.Type == TypeConfirm:
		return r.confirm(f.Payload)
	case r.state == settingsDue && f.Type == TypeSettings:
		r.state, r.got = finished, f.Payload
		if r.joins {
			return []Frame{{TypeSettings, r.cfg.Settings}}, nil
		}
		return nil, nil
	}
	return nil, fmt.Errorf("%w: type %d out of turn", ErrFrame, f.Type)
}

func (r *Run) hello(payload []byte) ([]Frame, error) {
	name, share, err := parseHello(payload)
	switch {
	case err != nil:
		return nil, err
	case name == r.cfg.Self.Name:
		return nil, fmt.Errorf("both hosts are named %s: give one another \"name\" in its host.json", name)
	}
	r.peer = name
	self := identity(r.cfg.Self)
	peer := identity(Side{name, r.cfg.PeerKey})
	a, b := self, peer
	if !r.joins {
		a, b = peer, self
	}
	aad := append([]byte(purpose), r.cfg.Binding...)
	if err := r.pake.Finish(share, a, b, aad); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	r.state = confirmDue
	if r.joins {
		return []Frame{{TypeConfirm, r.pake.Confirm()}}, nil
	}
	return []Frame{hello(r.cfg.Self.Name, r.pake.Share())}, nil
}

// identity is a side as SPAKE2 names it: the key has a fixed size, so no two sides have the same.
func identity(s Side) []byte { return append([]byte(s.Key), s.Name...) }

func (r *Run) confirm(payload []byte) ([]Frame, error) {
	if r.pake.Verify(payload) != nil {
		r.outcome = Wrong
		return nil, ErrCode
	}
	r.state, r.outcome = settingsDue, Right
	if r.joins {
		return nil, nil
	}
	return []Frame{{TypeConfirm, r.pake.Confirm()}, {TypeSettings, r.cfg.Settings}}, nil
}

// Outcome is what became of the code here.
func (r *Run) Outcome() Outcome { return r.outcome }

// Partner is the other host. ok is false until it is proven.
func (r *Run) Partner() (s Side, ok bool) {
	if r.outcome != Right {
		return Side{}, false
	}
	return Side{r.peer, r.cfg.PeerKey}, true
}

// Settings are the partner's; ok is false until they are here.
func (r *Run) Settings() (b []byte, ok bool) { return r.got, r.state == finished }
