package vm

import "time"

// maxBehind is how far the guest's clock may fall behind before it jumps
// instead of catching up tick by tick.
const maxBehind = 500 * time.Millisecond

// clock maps the host's monotonic time to the guest's. A guest's clock never
// goes back; it goes on where it was after a state transfer.
type clock struct {
	zero time.Time
}

// start sets the guest's clock to now ns.
func (c *clock) start(now uint64) { c.zero = time.Now().Add(-time.Duration(now)) }

// now is the guest's time, ns.
func (c *clock) now() uint64 { return c.at(time.Now()) }

// at is the guest's time at a time of the host's, ns.
func (c *clock) at(host time.Time) uint64 { return uint64(max(0, host.Sub(c.zero))) }

// host is the host's time at guest time t.
func (c *clock) host(t uint64) time.Time { return c.zero.Add(time.Duration(t)) }
