// Package pairing makes two hosts that have never met into a pair: they find each other on the direct cable, and one shows
// a code that the operator types at the other. Then each knows the other's key, and nobody else could have got in between.
//
// # Place
//
// Pure: it owns no socket, clock or random source. hvd/daemon/partner is its rim: beacons on the NICs, TLS, files.
// It imports ftlink/pairing/spake2.
//
// # The way
//
//	host a                                                         host b
//	beacon on each NIC, each second  <------ direct cable ------>  beacon on each NIC
//	shows the code 4711-0815                                       the operator types 4711-0815
//	accepts  <--------- TLS 1.3, both show their host keys -------  dials: it is the joiner
//	         <--------------- hello (name, share pA) -------------
//	takes the code out of its window
//	         ---------------- hello (name, share pB) ------------>
//	         <--------------------- confirm cA -------------------  now there is something to lose: one guess
//	cA is right: pins b's key, closes the window
//	cA is wrong: burns the code
//	         ------------- confirm cB, settings ----------------->  cB is right: pins a's key
//	         <------------------- settings -----------------------
//
// The shares and confirmations are SPAKE2's (package spake2, RFC 9382). Its password is the code; its identities are the
// two host keys, as TLS proved them to each side, with the hosts' names; and its additional data is TLS's exporter value
// (RFC 9266), which only the two ends of one TLS connection share.
//
// # Why it's safe
//
// A machine in the middle ends two TLS connections, with keys of its own: the two hosts see different keys and exporter
// values, so confirmations that it passes on don't fit. To make one that does it has to know the code. SPAKE2 leaves it
// one guess in a run, which it makes with its share. It has two places to guess at: as the joiner, where a wrong
// confirmation burns the code; and as the shower, when the operator types the code once. A code has 8 digits: so the chance
// is 2 in 10^8 for each code. A code lasts for CodeLife. After MaxGuesses wrong ones the window stays shut until the
// operator opens it again. What was overheard helps nobody later: a code is never used again, and a share doesn't tell it.
//
// If the last messages are lost, one side has pinned the other and not the other way round. No session comes up then,
// both say so, and pairing again mends it.
//
// # Layouts
//
// Frames, on the TLS stream; integers are big endian:
//
//	type     u8: 1 hello, 2 confirm, 3 settings, 4 refusal
//	length   u16, at most MaxPayload
//	payload  hello:    version u8 (1), share 65 bytes, name 1 to MaxName bytes
//	         confirm:  32 bytes
//	         settings: for the rim to read; may be empty
//	         refusal:  why, a line for people, at most MaxName + 192 bytes
//
// A beacon is a UDP datagram to ff02::1, see Beacon.
package pairing

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// Port is the TCP port of pairing and the UDP port of beacons, below those of ftlink/session.
	Port = 7098
	// CodeLife is how long a code counts.
	CodeLife = 15 * time.Minute
	// MaxGuesses is how many codes may be burnt until the window stays shut.
	MaxGuesses = 5
	// MaxName is the longest name of a host, in bytes: one DNS label.
	MaxName = 63
	// digits is the length of a code.
	digits = 8
)

// Code is a pairing code: 8 digits.
type Code string

// NewCode makes a code of random bytes. Of 2^64 values, 10^8 codes are equally likely but for one part in 10^11.
func NewCode(random [8]byte) Code {
	return Code(fmt.Sprintf("%0*d", digits, binary.BigEndian.Uint64(random[:])%100_000_000))
}

// ParseCode reads a code as people type it: blanks and hyphens mean nothing.
func ParseCode(s string) (Code, error) {
	s = strings.NewReplacer(" ", "", "-", "").Replace(s)
	if len(s) != digits || strings.Trim(s, "0123456789") != "" {
		return "", fmt.Errorf("a pairing code has %d digits, such as 4711-0815", digits)
	}
	return Code(s), nil
}

// String is the code in two groups, for people.
func (c Code) String() string {
	if len(c) != digits {
		return string(c)
	}
	return string(c[:digits/2] + "-" + c[digits/2:])
}

// Errors of a window.
var (
	ErrShut = errors.New("this host shows no pairing code now")
	ErrBusy = errors.New("another host is being paired with this one right now")
	// ErrGuesses says that somebody guessed too often.
	ErrGuesses = fmt.Errorf("%d wrong pairing codes were tried, so none is shown; look who is on the direct cable, then ask for a new one: duet host pair", MaxGuesses)
)

// Window is the time in which a host shows codes. The zero value is shut.
//
//	          Open                    Take                 Returned(Untested)
//	shut --------------> open(code) ---------> taken(code) ------------------> open(code)
//	  ^                    |    ^                |     | Returned(Right)
//	  |  expired, and it   |    |  Tick: a new   |     +------------> shut
//	  +-- doesn't renew ---+    +-- code --------+ Returned(Wrong): burnt, or the last of MaxGuesses: shut
type Window struct {
	open, renews, taken bool
	code                Code // empty: burnt
	until               time.Time
	wrong               int
}

// Outcome is what became of a code that was taken.
type Outcome uint8

// The outcomes: nobody tried to confirm it, a confirmation was wrong, or right.
const (
	Untested Outcome = iota
	Wrong
	Right
)

// Open shows a new code from now on. One that renews shows another when its time is over, for hosts that have no partner.
func (w *Window) Open(now time.Time, random [8]byte, renews bool) {
	*w = Window{open: true, renews: renews, taken: w.taken, code: NewCode(random), until: now.Add(CodeLife)}
}

// Close shows no code any more.
func (w *Window) Close() { *w = Window{taken: w.taken} }

// Tick lets time pass: it replaces a code that has expired or was burnt.
func (w *Window) Tick(now time.Time, random [8]byte) {
	expired := !now.Before(w.until)
	switch {
	case !w.open || w.taken || w.wrong >= MaxGuesses || w.code != "" && !expired:
	case expired && !w.renews:
		w.Close()
	case expired:
		wrong := w.wrong // guesses count until the operator opens the window again
		w.Open(now, random, true)
		w.wrong = wrong
	default:
		w.code = NewCode(random) // of a burnt one; the time to guess is no longer for it
	}
}

// Code is what is shown, and until when; err says why there is none.
func (w *Window) Code(now time.Time) (c Code, until time.Time, err error) {
	switch {
	case w.open && w.wrong >= MaxGuesses:
		return "", until, ErrGuesses
	case !w.open || w.code == "" || !now.Before(w.until):
		return "", until, ErrShut
	}
	return w.code, w.until, nil
}

// Take takes the code for one run, whose outcome Returned is told. There is one run at a time.
func (w *Window) Take(now time.Time) (Code, error) {
	if w.taken {
		return "", ErrBusy
	}
	c, _, err := w.Code(now)
	w.taken = err == nil
	return c, err
}

// Returned says what became of the code that was taken.
func (w *Window) Returned(c Code, o Outcome) {
	w.taken = false
	switch {
	case o == Right:
		w.Close()
	case o == Wrong:
		w.wrong++
		if w.code == c { // it may have been replaced by Open meanwhile
			w.code = ""
		}
	}
}
