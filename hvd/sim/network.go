package sim

import (
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
)

// network is the two paths between the hosts, with the log stream on the
// direct one, and the network of the clients.
type network struct {
	w      *World
	cut    [2][2]bool // [path][sender]
	loss   [2]int     // percent of heartbeats
	lag    time.Duration
	stream *stream
	newest [2][2]uint64 // [path][sender]: sequence number of the newest heartbeat that came
	claims int          // host that the switch sends the VM's packets to
	dialed bool         // a connection is being made
}

func (n *network) delay() time.Duration {
	if n.w.link > 0 {
		return n.w.link
	}
	d := n.w.between(100*time.Microsecond, time.Millisecond)
	if n.lag > 0 && n.w.chance(20) {
		d += n.w.between(0, n.lag)
	}
	return d
}

// send carries a heartbeat.
func (n *network) send(p *process, o pair.Send) {
	if n.cut[o.Path][p.host] || n.w.chance(n.loss[o.Path]) {
		return
	}
	n.w.after(n.delay(), func() {
		if to := n.w.hosts[1-p.host]; to != nil && !n.cut[o.Path][p.host] {
			n.note(p.host, o)
			to.do(func() { to.step(pair.Received(o)) })
		}
	})
}

// note counts heartbeats that come out of order.
func (n *network) note(sender int, o pair.Send) {
	newest := &n.newest[o.Path][sender]
	if o.Msg.Seq < *newest && o.Msg.Seq > 1 {
		n.w.count.Overtaken++
	}
	*newest = o.Msg.Seq
}

// toGuest carries a client's packet to where the switch thinks the VM is.
func (n *network) toGuest(o op) {
	n.w.after(n.delay(), func() {
		if p := n.w.hosts[n.claims]; p != nil {
			p.do(func() { p.frame(o) })
		}
	})
}

// toClient carries a guest's packet; the switch learns from it.
func (n *network) toClient(p *process, e effect) {
	n.claims = p.host
	n.w.after(n.delay(), func() { n.w.clients[e.op.client].reply(e.op) })
}

// stream is one connection for seeding and the log. Messages of one direction
// arrive in order; while the path is cut they wait.
type stream struct {
	n     *network
	ends  [2]*process
	open  [2]bool // the end hasn't closed it, and knows nothing of the other having done so
	last  [2]time.Duration
	stuck [2][]func() // by sender, while the path is cut
}

// dial makes a new stream some time from now, if both hosts have a process and
// at least one of them has no stream.
func (n *network) dial() {
	if n.dialed {
		return
	}
	n.dialed = true
	n.w.after(n.w.between(5*time.Millisecond, 60*time.Millisecond), func() {
		n.dialed = false
		n.connect()
	})
}

func (n *network) connect() {
	a, b := n.w.hosts[0], n.w.hosts[1]
	if a == nil || b == nil || n.whole() {
		return
	}
	if a.paused || b.paused || n.cut[pair.Direct] != [2]bool{} {
		n.dial()
		return
	}
	if old := n.stream; old != nil {
		for i, p := range old.ends {
			old.closed(i, p)
		}
	}
	s := &stream{n: n, ends: n.w.hosts, open: [2]bool{true, true}}
	n.stream = s
	for i, p := range s.ends {
		peer := s.ends[1-i]
		p.do(func() {
			if s.open[p.host] {
				p.stream = s
				p.step(pair.LinkUp{Incarnation: peer.incarnation})
			}
		})
	}
}

// whole says that the present stream serves the present processes.
func (n *network) whole() bool {
	s := n.stream
	return s != nil && s.open == [2]bool{true, true} && s.ends == n.w.hosts
}

// send has do run at the other end, in order.
func (s *stream) send(from int, do func(to *process)) {
	if !s.open[from] {
		return
	}
	deliver := func() {
		to := s.ends[1-from]
		to.do(func() {
			if s.open[1-from] {
				do(to)
			}
		})
	}
	at := max(s.last[from], s.n.w.now+s.n.delay())
	s.last[from] = at
	s.n.w.at(at, func() {
		if s.n.cut[pair.Direct][from] || len(s.stuck[from]) > 0 {
			s.stuck[from] = append(s.stuck[from], deliver)
			return
		}
		deliver()
	})
}

// healed delivers what waited for the path.
func (s *stream) healed() {
	for from := range s.stuck {
		if s.n.cut[pair.Direct][from] {
			continue
		}
		stuck := s.stuck[from]
		s.stuck[from] = nil
		for _, deliver := range stuck {
			deliver()
		}
	}
}

// reset closes the stream at one end; the other learns it in order with what
// was sent before.
func (s *stream) reset(from int) {
	if !s.open[from] {
		return
	}
	s.send(from, func(to *process) { s.closed(to.host, to) })
	s.open[from] = false
	s.n.dial()
}

// closed tells an end that the stream broke.
func (s *stream) closed(end int, p *process) {
	if !s.open[end] {
		return
	}
	s.open[end] = false
	s.n.dial()
	p.do(func() {
		if p.stream == s {
			p.stream, p.streaming = nil, false
			p.step(pair.LinkDown{})
		}
	})
}

// cutPath breaks a path for what one host sends. A stream that is cut for long
// breaks at both ends.
func (n *network) cutPath(path pair.Path, sender int) {
	n.cut[path][sender] = true
	if path != pair.Direct || n.stream == nil {
		return
	}
	s := n.stream
	n.w.after(n.w.between(800*time.Millisecond, 1500*time.Millisecond), func() {
		if n.cut[path][sender] {
			for i, p := range s.ends {
				s.closed(i, p)
			}
		}
	})
}

func (n *network) healPath(path pair.Path, sender int) {
	n.cut[path][sender] = false
	if path == pair.Direct && n.stream != nil {
		n.stream.healed()
	}
}
