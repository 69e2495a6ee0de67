package chipset

import (
	"errors"
	"math"
	"math/bits"
)

// PITHz is the frequency of the timer's input clock.
const PITHz = 1193182

const nsPerSecond = 1_000_000_000

// PIT is the interval timer of a PC (Intel 8254 data sheet) and its part of
// port 61h. Channel 0 drives interrupt 0; channel 2 can be gated and its output
// read back. Counting is binary; the BCD bit is ignored.
type PIT struct {
	Channels [3]PITChannel
	Speaker  bool // port 61h bit 1
	Refresh  bool // port 61h bit 4, which toggles with each read
}

// PITChannel is one counter.
type PITChannel struct {
	Mode   uint8  // 0 to 5
	Access uint8  // 1 low byte, 2 high byte, 3 low then high
	Reload uint32 // the count that was loaded, 1 to 65536; 0: none yet
	Start  uint64 // when counting began
	Frozen uint64 // how long it had counted when the gate closed
	Gate   bool   // open: it counts
	Next   uint64 // channel 0: when it interrupts next; 0: never

	Low      uint8  // first byte of a count of two
	HaveLow  bool   // Low was written, the high byte is to come
	ReadHigh bool   // the next byte read is the high one
	Latched  bool   // Latch holds a count to be read
	Latch    uint16 // a count caught by a latch command
	StatusOn bool   // Status holds a status to be read first
	Status   uint8  // caught by a read-back command
	Skew     uint16 // channel 2: see read
}

// NewPIT returns a timer that counts nothing yet.
func NewPIT() *PIT {
	p := &PIT{}
	for i := range p.Channels {
		p.Channels[i] = PITChannel{Access: 3, Gate: i != 2}
	}
	return p
}

// Validate checks a restored state.
func (p *PIT) Validate() error {
	for i := range p.Channels {
		if c := &p.Channels[i]; c.Mode > 5 || c.Access < 1 || c.Access > 3 || c.Reload > 65536 {
			return errors.New("PIT: mode, access or count out of range")
		}
	}
	return nil
}

// Deadline is when channel 0 interrupts next.
func (p *PIT) Deadline() (ns uint64, armed bool) {
	return p.Channels[0].Next, p.Channels[0].Next != 0
}

// Advance says whether channel 0 interrupts by now, and arms its next period.
func (p *PIT) Advance(now uint64) (fired bool) {
	c := &p.Channels[0]
	if c.Next == 0 || now < c.Next {
		return false
	}
	c.Next = 0
	if c.periodic() {
		c.Next = c.period(now)
	}
	return true
}

// Write stores a byte to port 40h to 43h or 61h.
func (p *PIT) Write(port uint16, v uint8, now uint64) {
	switch {
	case port == 0x61:
		p.Channels[2].setGate(v&1 != 0, now)
		p.Speaker = v&2 != 0
	case port == 0x43:
		p.control(v, now)
	case port >= 0x40 && port < 0x43:
		n := port - 0x40
		if p.Channels[n].write(v, now) && n == 0 {
			p.arm(now)
		}
	}
}

// Read returns a byte of port 40h to 42h or 61h.
func (p *PIT) Read(port uint16, now uint64) uint8 {
	switch {
	case port == 0x61:
		p.Refresh = !p.Refresh
		return bit(p.Channels[2].Gate, 0) | bit(p.Speaker, 1) | bit(p.Refresh, 4) | bit(p.Channels[2].output(now), 5)
	case port >= 0x40 && port < 0x43:
		return p.Channels[port-0x40].read(now, port == 0x42)
	}
	return 0xff
}

func bit(on bool, n int) uint8 {
	if on {
		return 1 << n
	}
	return 0
}

// control is the control word: a mode, a latch, or the read-back command.
func (p *PIT) control(v uint8, now uint64) {
	n := v >> 6
	if n == 3 {
		for i := range p.Channels {
			if v>>(i+1)&1 == 1 {
				p.Channels[i].readBack(v&0x20 == 0, v&0x10 == 0, now)
			}
		}
		return
	}
	c := &p.Channels[n]
	access := v >> 4 & 3
	if access == 0 {
		c.latch(now)
		return
	}
	mode := v >> 1 & 7
	if mode > 5 { // the data sheet's "don't care" bit of modes 2 and 3
		mode -= 4
	}
	// Writing the mode stops the counter until a count is loaded.
	*c = PITChannel{Mode: mode, Access: access, Gate: c.Gate, Skew: c.Skew}
}

// arm computes channel 0's first interrupt after a count was loaded.
func (p *PIT) arm(now uint64) {
	c := &p.Channels[0]
	switch c.Mode {
	case 0, 4: // N+1 clocks after the count was written
		c.Next = addSat(now, ticksToNS(uint64(c.Reload)+1))
	case 2, 3:
		c.Next = c.period(now)
	default: // waits for an edge of a gate that is always open
		c.Next = 0
	}
}

func (c *PITChannel) periodic() bool { return c.Mode == 2 || c.Mode == 3 }

// period is the first end of a period after now.
func (c *PITChannel) period(now uint64) uint64 {
	n := uint64(max(c.Reload, 1))
	k := nsToTicks(now-min(c.Start, now))/n + 1
	return addSat(c.Start, ticksToNS(k*n))
}

// write takes a byte of a count and says whether the count is complete.
func (c *PITChannel) write(v uint8, now uint64) bool {
	var count uint32
	switch {
	case c.Access == 1:
		count = uint32(v)
	case c.Access == 2:
		count = uint32(v) << 8
	case !c.HaveLow:
		c.Low, c.HaveLow = v, true
		return false
	default:
		c.HaveLow = false
		count = uint32(c.Low) | uint32(v)<<8
	}
	if count == 0 {
		count = 65536
	}
	c.Reload, c.Start, c.Frozen = count, now, 0
	return true
}

// setGate opens or closes the gate. Closing it stops the counter; opening it
// goes on (modes 0 and 4) or starts anew.
func (c *PITChannel) setGate(open bool, now uint64) {
	switch {
	case open == c.Gate:
		return
	case !open:
		c.Frozen = c.elapsed(now)
	case c.Mode == 0 || c.Mode == 4:
		c.Start = now - min(c.Frozen, now)
	default:
		c.Start = now
	}
	c.Gate = open
}

// elapsed is how long the channel has counted, in ns.
func (c *PITChannel) elapsed(now uint64) uint64 {
	if !c.Gate {
		return c.Frozen
	}
	return now - min(c.Start, now)
}

// count is the counter's value.
func (c *PITChannel) count(now uint64) uint16 {
	if c.Reload == 0 {
		return 0
	}
	t, n := nsToTicks(c.elapsed(now)), uint64(c.Reload)
	switch c.Mode {
	case 2:
		return uint16(n - t%n)
	case 3: // counts down by two, twice a period
		return uint16(n - 2*t%n)
	}
	return uint16(n - t)
}

// output is the level of the output pin.
func (c *PITChannel) output(now uint64) bool {
	if c.Reload == 0 {
		return c.Mode != 0
	}
	t, n := nsToTicks(c.elapsed(now)), uint64(c.Reload)
	switch c.Mode {
	case 0, 1:
		return t > n
	case 2:
		return t%n != n-1
	case 3:
		return t%n < (n+1)/2
	}
	return t != n
}

func (c *PITChannel) latch(now uint64) {
	if !c.Latched {
		c.Latched, c.Latch = true, c.count(now)
	}
}

func (c *PITChannel) readBack(count, status bool, now uint64) {
	if count {
		c.latch(now)
	}
	if status && !c.StatusOn {
		c.StatusOn = true
		c.Status = bit(c.output(now), 7) | bit(c.Reload == 0, 6) | c.Access<<4 | c.Mode<<1
	}
}

// read returns the next byte of a latched status, a latched count, or the
// count as it is.
//
// The count of channel 2, read on the fly, is skewed after each byte pair so
// that its high byte differs from the last one. Linux measures the time-stamp
// counter by reading this channel some 100,000 times, each an exit, unless the
// high byte jumps: then quick_pit_calibrate gives up at once. The measurement
// by port 61h, which needs the output only, stays right.
func (c *PITChannel) read(now uint64, skewed bool) uint8 {
	if c.StatusOn {
		c.StatusOn = false
		return c.Status
	}
	v := c.Latch
	if !c.Latched {
		v = c.count(now) - c.Skew
	}
	high := c.Access == 2 || c.Access == 3 && c.ReadHigh
	done := c.Access != 3 || c.ReadHigh
	c.ReadHigh = c.Access == 3 && !c.ReadHigh
	if done {
		if skewed && !c.Latched {
			c.Skew += 0x3100
		}
		c.Latched = false
	}
	if high {
		return uint8(v >> 8)
	}
	return uint8(v)
}

// nsToTicks is how many whole ticks of the timer's clock fit into ns.
func nsToTicks(ns uint64) uint64 {
	hi, lo := bits.Mul64(ns, PITHz)
	q, _ := bits.Div64(hi, lo, nsPerSecond) // hi < PITHz < nsPerSecond
	return q
}

// ticksToNS is the first ns at which n ticks have passed.
func ticksToNS(n uint64) uint64 {
	hi, lo := bits.Mul64(n, nsPerSecond)
	lo, carry := bits.Add64(lo, PITHz-1, 0)
	hi += carry
	if hi >= PITHz {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, PITHz)
	return q
}
