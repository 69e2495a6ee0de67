package ether

import "sync"

// Hub is a learning switch. It learns the port of an address from every frame, so that a VM which announces itself
// from another host is found there with the next frame.
type Hub struct {
	mu      sync.Mutex
	ports   []*Port
	learned map[MAC]*Port
	// fixed are ports of one known address: they get nothing but frames for it, and broadcasts.
	fixed map[*Port]MAC
}

// maxLearned bounds the table of addresses; a machine that invents more makes the hub flood, as real ones do.
const maxLearned = 4096

// NewHub makes a hub without ports.
func NewHub() *Hub {
	return &Hub{learned: map[MAC]*Port{}, fixed: map[*Port]MAC{}}
}

// Attach plugs a port into the hub.
func (h *Hub) Attach(p *Port) {
	h.mu.Lock()
	h.ports = append(h.ports, p)
	h.mu.Unlock()
	p.connect(func(f []byte) { h.forward(p, f) }, func() { h.forget(p) })
}

// AttachFixed plugs in a port that owns the address mac, which no other port can take. It gets only frames for mac
// and broadcasts; network stacks that forward what is not theirs need that.
func (h *Hub) AttachFixed(p *Port, mac MAC) {
	h.mu.Lock()
	h.fixed[p] = mac
	h.learned[mac] = p
	h.mu.Unlock()
	h.Attach(p)
}

// Location returns the port behind which mac was last heard; nil if it was not.
func (h *Hub) Location(mac MAC) *Port {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.learned[mac]
}

func (h *Hub) forward(from *Port, frame []byte) {
	for _, p := range h.route(from, frame) {
		p.Send(frame)
	}
}

// route learns from the frame and returns the ports that it goes to.
func (h *Hub) route(from *Port, frame []byte) []*Port {
	dst, src := addresses(frame)
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.learned[src]
	_, fixed := h.fixed[known]
	if !src.IsMulticast() && !fixed && (ok || len(h.learned) < maxLearned) {
		h.learned[src] = from
	}
	if to, ok := h.learned[dst]; ok && !dst.IsMulticast() {
		if to == from {
			return nil
		}
		return []*Port{to}
	}
	var to []*Port
	for _, p := range h.ports {
		_, fixed := h.fixed[p]
		if p == from || fixed && dst != Broadcast {
			continue
		}
		to = append(to, p)
	}
	return to
}

func (h *Hub) forget(p *Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, fixed := h.fixed[p]; fixed {
		return
	}
	for mac, at := range h.learned {
		if at == p {
			delete(h.learned, mac)
		}
	}
}

// Join makes a cable between two ports: what one machine sends, the other gets.
func Join(a, b *Port) {
	a.connect(b.Send, func() {})
	b.connect(a.Send, func() {})
}
