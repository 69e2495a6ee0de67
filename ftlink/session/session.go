// Package session connects the two copies of a VM, one on each host: one
// ordered and authenticated stream of frames over the direct NIC, and
// authenticated datagrams over the direct NIC and the management network.
//
// # Place
//
// hvd runs one Link for each VM, and one for the hosts themselves. It knows
// nothing of VMs or roles. It imports ftlink/nic and wire.
//
// # The stream
//
// TLS 1.3 over TCP, port BasePort+slot, on the direct NIC. Certificates are
// made at start and say nothing: each side accepts exactly the Ed25519 key
// that it was paired with. The host whose name is smaller by byte order dials,
// the other accepts. The dialler sends wire.Hello first; the acceptor answers
// with its own, or with wire's Bye when host, VM or version don't fit. A new
// stream replaces the one before, because only a peer that lost the old one
// makes a new one.
//
//	dialler   wait for a peer address -> dial -> TLS -> hellos -> up
//	             ^                         |       |      |       |
//	             +------ back-off ---------+-------+------+-------+
//	acceptor  accept (handshakes at most maxHandshakes) -> TLS -> hellos -> up
//
// Frames that were queued when a stream ends are gone. They are sent on a
// Conn and not on the Link, so none can stray into the next stream.
//
// # Datagrams
//
// UDP, port BasePort+slot, on both paths; little endian, at most MaxDatagram
// bytes:
//
//	magic        4 bytes "duet"
//	version      u8, 1
//	kind         u8: 1 heartbeat, 2 beacon, 3 echo, 4 its answer
//	path         u8: 1 direct, 2 management
//	slot         u8, 255 for the hosts' own link
//	incarnation  u64 of the sending process
//	counter      u64, rises with each datagram on the path
//	payload      0 to MaxHeartbeat bytes
//	tag          16 bytes, HMAC-SHA-256 of all before, cut
//
// The tag's key comes from X25519 between the hosts' keys in their Montgomery
// form, then HKDF-SHA-256 without salt over the info: the text "duet datagram
// 1", the sender's and the receiver's public key, the VM's UUID. So a datagram
// counts on one path, for one VM, between two hosts, one way, once: a
// (incarnation, counter) that isn't above the last one is stale. While a
// stream is up, only the incarnation counts that its hello named.
//
// A beacon is sent to all nodes of the link (ff02::1) once a second, five
// times a second while no stream is up. Its payload:
//
//	address      16 bytes, the sender's link-local address on that NIC
//	fingerprint  8 bytes, see Fingerprint
//	name         the sender's host, at most wire.MaxName bytes
//
// A beacon counts only if it came from the address that it names, so it can't
// be repeated by another machine to attract traffic.
//
// An echo's payload is its number, 8 bytes, which the answer repeats. They go over
// the direct path while a stream is up, and time the way to the peer's program.
//
// What isn't well-formed, fresh and authentic is dropped and counted.
package session

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/duet-ft/duet/ftlink/wire"
)

const (
	// BasePort is the TCP and UDP port of slot 0.
	BasePort = 7100
	// MaxSlot is the largest slot of a VM.
	MaxSlot = 63
	// HostSlot is the slot of the link between the hosts themselves.
	HostSlot = -1
	// DefaultStall is how long a peer may take no data, or acknowledge none,
	// before its stream ends.
	DefaultStall = 5 * time.Second
)

// Errors that a handler may want to tell apart. What it gets wraps them.
var (
	// ErrPeerKey says that a machine shows another key than the paired one.
	ErrPeerKey = errors.New("it shows another key than the one that this host was paired with")
	// ErrRefused says that the peer doesn't accept this host's key or hello.
	ErrRefused = errors.New("the peer refuses this host")
	// ErrMismatch says that the peer's hello doesn't fit.
	ErrMismatch = errors.New("the peer doesn't fit")
	// ErrBye says that the peer closed the stream on purpose.
	ErrBye = errors.New("the peer closed the stream")
	// ErrReplaced says that the peer has made a new stream.
	ErrReplaced = errors.New("the peer made a new stream")
	// ErrClosed says that this side closed the stream.
	ErrClosed = errors.New("the stream is closed")
	// ErrLost says that the stream ended without a word.
	ErrLost = errors.New("the stream to the peer is lost")
)

// Identity is this host.
type Identity struct {
	Name string
	Key  ed25519.PrivateKey
}

// Peer is the host that this one is paired with.
type Peer struct {
	Name string
	Key  ed25519.PublicKey
}

// Fingerprint is a short form of a key for people: 16 hexadecimal digits.
func Fingerprint(key ed25519.PublicKey) string {
	h := fingerprint(key)
	return hex.EncodeToString(h[:])
}

func fingerprint(key ed25519.PublicKey) (f [fingerprintSize]byte) {
	h := sha256.Sum256(key)
	copy(f[:], h[:])
	return f
}

// Path is one of the two ways between the hosts.
type Path uint8

// The paths.
const (
	Direct     Path = 1 + iota // the cable between the hosts
	Management                 // the network that the hosts' users are on
)

// String is the path's name, for people.
func (p Path) String() string {
	switch p {
	case Direct:
		return "direct"
	case Management:
		return "management"
	}
	return fmt.Sprintf("path(%d)", uint8(p))
}

// PathConfig says where a path is. The zero value: there is no such path.
type PathConfig struct {
	// Interface is the NIC. Sockets are bound to it, and the peer is found by
	// beacons unless Peer is set.
	Interface string
	// Local is the address to bind to, any by default.
	Local netip.Addr
	// Peer is the peer's address; its port is the slot's if it is 0.
	Peer netip.AddrPort
}

func (c PathConfig) exists() bool { return c.Interface != "" || c.Local.IsValid() || c.Peer.IsValid() }

// Config is what a Link needs to know.
type Config struct {
	Self Identity
	Peer Peer
	Slot int    // 0 to MaxSlot, or HostSlot
	VM   string // UUID; both sides must name the same
	// Incarnation is larger for each process that serves this VM on this
	// host; the time in nanoseconds by default.
	Incarnation uint64
	// Role is asked for this side's role when a stream is made. May be nil.
	Role func() string

	Direct     PathConfig // the stream's path too
	Management PathConfig

	Stall   time.Duration // DefaultStall by default
	Handler Handler
}

// Handler is told what happens on a Link. Up, Frame and Down come from one
// goroutine: for each stream Up, its frames, then Down. While Frame blocks,
// nothing is read, and the peer's Send blocks in the end: that is the
// back-pressure. It must not block beyond the end of Run's context; and two
// sides that wait in Frame for room to send wait for each other, until Stall
// ends the stream. Heartbeat
// and Trouble come from other goroutines, concurrently, and must not block.
type Handler interface {
	// Up says that there is a stream. It may send on c.
	Up(c *Conn)
	// Frame hands over a frame, any type but Hello and Bye. Its payload is
	// valid during the call.
	Frame(c *Conn, f wire.Frame)
	// Down says why the stream ended.
	Down(c *Conn, err error)
	// Heartbeat hands over a heartbeat that arrived on a path. The payload is
	// valid during the call.
	Heartbeat(p Path, payload []byte)
	// Trouble says in a line for people why there is no stream yet, or no
	// path. The same line comes at most every 30 s.
	Trouble(err error)
}

// New returns a link. Nothing happens before Run.
func New(cfg Config) (*Link, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Stall == 0 {
		cfg.Stall = DefaultStall
	}
	if cfg.Incarnation == 0 {
		cfg.Incarnation = uint64(time.Now().UnixNano())
	}
	secure, err := newSecure(cfg.Self, cfg.Peer)
	if err != nil {
		return nil, err
	}
	keys, err := newMACKeys(cfg.Self.Key, cfg.Peer.Key, cfg.VM)
	if err != nil {
		return nil, fmt.Errorf("the key of peer %q is unusable, pair the hosts again: %w", cfg.Peer.Name, err)
	}
	l := &Link{cfg: cfg, secure: secure, keys: keys, offered: make(chan struct{}, 1)}
	l.complaints = complaints{bucket: bucket{rate: 5, burst: 10}}
	for _, p := range []struct {
		kind Path
		cfg  PathConfig
	}{{Direct, cfg.Direct}, {Management, cfg.Management}} {
		if p.cfg.exists() {
			l.paths = append(l.paths, newPath(l, p.kind, p.cfg))
		}
	}
	return l, nil
}

func (c *Config) check() error {
	switch {
	case len(c.Self.Key) != ed25519.PrivateKeySize:
		return fmt.Errorf("host %q has no usable Ed25519 key", c.Self.Name)
	case len(c.Peer.Key) != ed25519.PublicKeySize:
		return fmt.Errorf("peer %q has no usable Ed25519 key: pair the hosts again", c.Peer.Name)
	case c.Peer.Key.Equal(c.Self.Key.Public()):
		return errors.New("peer and host have the same key: each host needs one of its own")
	case c.Self.Name == "" || c.Peer.Name == "" || c.Self.Name == c.Peer.Name:
		return fmt.Errorf("hosts %q and %q: a pair needs two different names", c.Self.Name, c.Peer.Name)
	case len(c.Self.Name) > wire.MaxName || len(c.Peer.Name) > wire.MaxName || len(c.VM) > wire.MaxName:
		return fmt.Errorf("name of host or VM above %d bytes", wire.MaxName)
	case c.Slot < HostSlot || c.Slot > MaxSlot:
		return fmt.Errorf("slot %d: want 0 to %d", c.Slot, MaxSlot)
	case !c.Direct.exists():
		return errors.New("no direct path between the hosts is configured")
	case c.Handler == nil:
		return errors.New("a link needs a handler")
	}
	return nil
}

// dials tells whether this side makes the stream.
func (c *Config) dials() bool { return c.Self.Name < c.Peer.Name }

// slotByte is the slot as datagrams name it.
func (c *Config) slotByte() uint8 {
	if c.Slot == HostSlot {
		return hostSlotByte
	}
	return uint8(c.Slot)
}

func (c *Config) port() uint16 { return uint16(BasePort + c.Slot) }
