package chipset

import "testing"

// load programs a channel with a count of two bytes.
func load(p *PIT, ch, mode uint8, count uint16, now uint64) {
	p.Write(0x43, ch<<6|0x30|mode<<1, now)
	p.Write(0x40+uint16(ch), uint8(count), now)
	p.Write(0x40+uint16(ch), uint8(count>>8), now)
}

func read16(p *PIT, ch uint8, now uint64) int {
	lo := p.Read(0x40+uint16(ch), now)
	return int(p.Read(0x40+uint16(ch), now))<<8 | int(lo)
}

// at is when n clocks have passed.
func at(n uint64) uint64 { return ticksToNS(n) }

func TestPITClock(t *testing.T) {
	if got := ticksToNS(PITHz); got != nsPerSecond {
		t.Errorf("%d clocks are %d ns", PITHz, got)
	}
	for _, n := range []uint64{1, 2, 3, 1193, 65536, 1 << 40} {
		if got := nsToTicks(ticksToNS(n)); got != n {
			t.Errorf("%d clocks and back: %d", n, got)
		}
		if got := nsToTicks(ticksToNS(n) - 1); got != n-1 {
			t.Errorf("one ns before %d clocks: %d", n, got)
		}
	}
	if got := ticksToNS(1 << 63); got != 1<<64-1 {
		t.Errorf("overflow: %d", got)
	}
}

func TestPITDeadlines(t *testing.T) {
	const start = 1000
	for _, c := range []struct {
		name string
		mode uint8
		n    uint16
		want []uint64 // deadlines, each after advancing to the last
	}{
		{"mode 0, once, after N+1 clocks", 0, 100, []uint64{start + at(101), 0}},
		{"mode 1, waits for its gate", 1, 100, []uint64{0}},
		{"mode 2, periodic", 2, 100, []uint64{start + at(100), start + at(200), start + at(300)}},
		{"mode 3, periodic", 3, 100, []uint64{start + at(100), start + at(200)}},
		{"mode 4, once, after N+1 clocks", 4, 100, []uint64{start + at(101), 0}},
		{"a count of 0 is 65536", 2, 0, []uint64{start + at(65536)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := NewPIT()
			load(p, 0, c.mode, c.n, start)
			for i, want := range c.want {
				got, armed := p.Deadline()
				if got != want || armed != (want != 0) {
					t.Fatalf("deadline %d is %d (%v), want %d", i, got, armed, want)
				}
				if armed && (p.Advance(got-1) || !p.Advance(got)) {
					t.Fatalf("deadline %d didn't fire exactly then", i)
				}
			}
		})
	}
}

func TestPITIsLate(t *testing.T) {
	p := NewPIT()
	load(p, 0, 2, 100, 0)
	if !p.Advance(at(1050)) || p.Advance(at(1050)) {
		t.Error("want one interrupt for ten periods")
	}
	if got, _ := p.Deadline(); got != at(1100) {
		t.Errorf("deadline %d, want %d: the phase is lost", got, at(1100))
	}
}

func TestPITModeStopsTheCounter(t *testing.T) {
	p := NewPIT()
	load(p, 0, 2, 100, 0)
	p.Write(0x43, 0x30, at(10))
	if _, armed := p.Deadline(); armed {
		t.Error("still armed after a new mode")
	}
	p.Write(0x40, 1, at(10))
	if _, armed := p.Deadline(); armed {
		t.Error("armed by half a count")
	}
}

func TestPITCounts(t *testing.T) {
	for _, c := range []struct {
		mode  uint8
		ticks uint64
		want  int
	}{
		{0, 0, 1000},
		{0, 1, 999},
		{0, 1000, 0},
		{0, 1001, 0xffff},
		{2, 0, 1000},
		{2, 999, 1},
		{2, 1000, 1000},
		{2, 1001, 999},
		{3, 0, 1000},
		{3, 1, 998},
		{3, 499, 2},
		{3, 500, 1000},
	} {
		p := NewPIT()
		load(p, 0, c.mode, 1000, 0)
		if got := read16(p, 0, at(c.ticks)); got != c.want {
			t.Errorf("mode %d after %d clocks: %d, want %d", c.mode, c.ticks, got, c.want)
		}
	}
}

func TestPITLatch(t *testing.T) {
	p := NewPIT()
	load(p, 0, 2, 1000, 0)
	p.Write(0x43, 0, at(10))
	p.Write(0x43, 0, at(20)) // ignored: the first isn't read yet
	if got := read16(p, 0, at(500)); got != 990 {
		t.Errorf("latched %d, want 990", got)
	}
	if got := read16(p, 0, at(500)); got != 500 {
		t.Errorf("then %d, want 500", got)
	}
}

func TestPITReadBack(t *testing.T) {
	p := NewPIT()
	load(p, 0, 2, 1000, 0)
	p.Write(0x43, 0xc2, at(10)) // count and status of channel 0
	if got := p.Read(0x40, at(20)); got != 0x80|0x30|2<<1 {
		t.Errorf("status %#x", got)
	}
	if got := read16(p, 0, at(20)); got != 990 {
		t.Errorf("count %d", got)
	}
}

func TestPITOneByteCounts(t *testing.T) {
	p := NewPIT()
	p.Write(0x43, 0x14, 0) // low byte only, mode 2
	p.Write(0x40, 50, 0)
	if got, _ := p.Deadline(); got != at(50) {
		t.Errorf("deadline %d, want %d", got, at(50))
	}
	if got := p.Read(0x40, at(10)); got != 40 {
		t.Errorf("count %d", got)
	}
	p.Write(0x43, 0x24, 0) // high byte only
	p.Write(0x40, 1, 0)
	if got := p.Read(0x40, at(100)); got != 0 {
		t.Errorf("high byte %d of 156", got)
	}
}

// TestPITCalibration is Linux's pit_calibrate_tsc: open the gate of channel 2,
// load it in mode 0, and wait until port 61h shows its output.
func TestPITCalibration(t *testing.T) {
	p := NewPIT()
	p.Write(0x61, p.Read(0x61, 0)&^2|1, 0)
	const latch = PITHz / 20 // 50 ms
	load(p, 2, 0, latch, 0)
	if p.Read(0x61, at(latch))&0x20 != 0 {
		t.Error("output is high before the terminal count")
	}
	if p.Read(0x61, at(latch+1))&0x20 == 0 {
		t.Error("output is low after the terminal count")
	}
}

// TestPITQuickCalibrationGivesUp is Linux's quick_pit_calibrate, which must not
// see the same high byte six times.
func TestPITQuickCalibrationGivesUp(t *testing.T) {
	p := NewPIT()
	p.Write(0x61, 1, 0)
	load(p, 2, 0, 0xffff, 0)
	same := func(v uint8) bool {
		p.Read(0x42, 0)
		return p.Read(0x42, 0) == v
	}
	same(0)
	n := 0
	for n < 50000 && same(0xff) {
		n++
	}
	if n > 5 {
		t.Errorf("the high byte was right %d times", n)
	}
}

func TestPITGate(t *testing.T) {
	p := NewPIT()
	p.Write(0x61, 1, 0)
	load(p, 2, 0, 1000, 0)
	p.Write(0x61, 0, at(100))
	p.Write(0x61, 1, at(5000))
	p.Write(0x43, 0x80, at(5100))
	if got := read16(p, 2, at(5100)); got < 799 || got > 801 {
		t.Errorf("mode 0 counted to %d with the gate open for 200 clocks", got)
	}
	load(p, 2, 3, 1000, at(6000))
	p.Write(0x61, 0, at(6100))
	p.Write(0x61, 1, at(7000))
	p.Write(0x43, 0x80, at(7000))
	if got := read16(p, 2, at(7000)); got != 1000 {
		t.Errorf("mode 3 is at %d after its gate opened, want a new period", got)
	}
}
