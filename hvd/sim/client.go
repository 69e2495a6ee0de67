package sim

import "time"

// client stores one value after another and repeats a request until it is
// told that it is done.
type client struct {
	w         *World
	id        int
	want      record
	lastReply time.Duration
}

func newClient(w *World, id int) *client {
	c := &client{w: w, id: id, want: record{1, valueOf(id, 1)}}
	w.after(w.between(0, 500*time.Millisecond), c.send)
	return c
}

// valueOf is what a client stores with a request.
func valueOf(client int, seq uint64) uint64 { return mix(uint64(client)+1, seq) }

func (c *client) send() {
	seq := c.want.seq
	c.w.network.toGuest(c.id, c.want)
	c.w.after(200*time.Millisecond, func() {
		if c.want.seq == seq {
			c.send()
		}
	})
}

// reply is what a guest's packet says.
func (c *client) reply(r record) {
	if r.seq > c.want.seq || r.value != valueOf(c.id, r.seq) {
		c.w.fail("client %d asked for %d and is told of %d", c.id, c.want.seq, r.seq)
		return
	}
	if r.seq < c.want.seq {
		return // a late copy
	}
	c.w.truth.acked[c.id] = r.seq
	c.w.count.Acknowledged++
	c.lastReply = c.w.now
	next := record{r.seq + 1, valueOf(c.id, r.seq+1)}
	c.want = next
	c.w.after(c.w.between(20*time.Millisecond, 120*time.Millisecond), func() {
		if c.want == next {
			c.send()
		}
	})
}
