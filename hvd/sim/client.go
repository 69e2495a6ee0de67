package sim

import (
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// client writes to keys and reads them, one operation after the other, and
// repeats a request until it is answered.
type client struct {
	w         *World
	id        int
	asked     op
	since     time.Duration
	count     [keyCount][2]uint64 // operations so far, by key and kind
	lastReply time.Duration
	history   []porcupine.Operation
}

func newClient(w *World, id int) *client {
	c := &client{w: w, id: id, history: make([]porcupine.Operation, 0, 200)}
	w.after(w.between(0, 500*time.Millisecond), c.next)
	return c
}

// next begins another operation.
func (c *client) next() {
	o := op{client: c.id, key: c.w.rng.IntN(keyCount), read: c.w.chance(30)}
	kind := 0
	if o.read {
		kind = 1
	}
	c.count[o.key][kind]++
	o.n = c.count[o.key][kind]
	if !o.read {
		o.value = valueOf(o)
	}
	c.asked, c.since = o, c.w.now
	c.send()
}

// valueOf is what a client stores with a write. No two store the same.
func valueOf(o op) uint64 { return mix(uint64(o.client)<<8|uint64(o.key)+1, o.n) }

func (c *client) send() {
	asked := c.asked
	c.w.network.toGuest(asked)
	c.w.after(200*time.Millisecond, func() {
		if c.asked == asked {
			c.send()
		}
	})
}

// reply is what a guest's packet says.
func (c *client) reply(o op) {
	a := c.asked
	same := o.key == a.key && o.read == a.read && o.n == a.n
	switch {
	case o.client != c.id:
		c.w.fail("client %d gets an answer for client %d", c.id, o.client)
		return
	case !o.read && o.value != valueOf(o):
		c.w.fail("client %d is told that it wrote %x as its write %d", c.id, o.value, o.n)
		return
	case !same:
		return // a late copy
	}
	if !o.read {
		c.w.truth.acked[o.key][c.id] = o.n
	}
	c.w.count.Acknowledged++
	c.lastReply = c.w.now
	c.history = append(c.history, porcupine.Operation{
		ClientId: c.id, Input: o, Call: int64(c.since), Output: o.value, Return: int64(c.w.now),
	})
	c.asked = op{client: c.id}
	c.w.after(c.w.between(20*time.Millisecond, 120*time.Millisecond), c.next)
}

// register is what a key is to the clients: a value that writes replace and
// reads return. The state is the value.
var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, keyCount)
		for _, o := range history {
			key := o.Input.(op).key
			parts[key] = append(parts[key], o)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		o := input.(op)
		if o.read {
			return output == state, state
		}
		return true, o.value
	},
}

// checkClients looks for an order of all operations, each between its request
// and its answer, in which every read returns what was written last. A write
// that wasn't answered may have taken place at any time since, or never.
func (w *World) checkClients() {
	var history []porcupine.Operation
	for _, c := range w.clients {
		history = append(history, c.history...)
		if c.asked.n > 0 && !c.asked.read {
			history = append(history, porcupine.Operation{
				ClientId: c.id, Input: c.asked, Call: int64(c.since), Output: c.asked.value, Return: math.MaxInt64,
			})
		}
	}
	if !porcupine.CheckOperations(register, history) {
		w.fail("the clients' history can't be explained by any order of what they did")
	}
}
