package session

import (
	"net/netip"
	"sync/atomic"
)

// traffic counts over all streams of a link.
type traffic struct {
	up                        atomic.Bool
	streams, refused          atomic.Uint64
	bytesIn, bytesOut, writes atomic.Uint64
	framesIn, framesOut       atomic.Uint64
}

// Stats are counters since New.
type Stats struct {
	Up        bool   `json:"up"`       // there is a stream now
	Streams   uint64 `json:"streams"`  // that were up
	Refused   uint64 `json:"refused"`  // connections whose handshake failed (acceptor)
	BytesIn   uint64 `json:"bytes_in"` // on the stream, TLS included
	BytesOut  uint64 `json:"bytes_out"`
	Writes    uint64 `json:"writes"` // system calls for BytesOut
	FramesIn  uint64 `json:"frames_in"`
	FramesOut uint64 `json:"frames_out"` // queued; a SendLog counts as one

	Direct     PathStats `json:"direct"`
	Management PathStats `json:"management"`
}

// PathStats are counters of the datagrams on a path.
type PathStats struct {
	Peer       netip.AddrPort `json:"peer"` // where the peer is, as far as known
	Sent       uint64         `json:"sent"`
	Unsent     uint64         `json:"unsent"`     // no socket, no peer address, or an error
	Received   uint64         `json:"received"`   // accepted
	Malformed  uint64         `json:"malformed"`  // not a datagram of this link and path
	Stale      uint64         `json:"stale"`      // not above the last counter
	Unverified uint64         `json:"unverified"` // not made with the hosts' keys
	// Stranger is the name and fingerprint in the last beacon of this slot
	// that wasn't made with the hosts' keys: what it says isn't proven.
	Stranger string `json:"stranger,omitempty"`
}

// Stats returns the counters.
func (l *Link) Stats() Stats {
	t := &l.traffic
	s := Stats{
		Up: t.up.Load(), Streams: t.streams.Load(), Refused: t.refused.Load(),
		BytesIn: t.bytesIn.Load(), BytesOut: t.bytesOut.Load(), Writes: t.writes.Load(),
		FramesIn: t.framesIn.Load(), FramesOut: t.framesOut.Load(),
	}
	for _, p := range l.paths {
		if p.kind == Direct {
			s.Direct = p.snapshot()
		} else {
			s.Management = p.snapshot()
		}
	}
	return s
}
