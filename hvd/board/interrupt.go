package board

// Now is guest time in ns, as the last Advance set it.
func (b *Board) Now() uint64 { return b.d.now }

// Advance sets guest time and lets the devices do what is due by then. Time
// doesn't go back: an earlier time counts as the present one.
func (b *Board) Advance(now uint64) {
	d := b.d
	now = max(now, d.now)
	d.now = now
	fired := false
	if d.pit.Advance(now) {
		d.pic.Pulse(irqPIT)
		fired = true
	}
	fired = d.apic.Advance(now) || fired
	for _, t := range d.functions {
		t.Advance(now)
		if fired { // late interrupts come along with a timer
			t.Flush()
		}
	}
}

// Deadline is when a device next does something by itself; armed is false if
// none does. A PIT whose interrupt is masked doesn't count: what it missed
// comes with the first Advance after it is unmasked.
func (b *Board) Deadline() (ns uint64, armed bool) {
	d := b.d
	earliest := func(at uint64, on bool) {
		if on && (!armed || at < ns) {
			ns, armed = at, true
		}
	}
	earliest(d.apic.Deadline())
	if !d.pic.Masked(irqPIT) && d.apic.ExtINT() {
		earliest(d.pit.Deadline())
	}
	for _, t := range d.functions {
		earliest(t.Deadline())
	}
	return ns, armed
}

// Pending says whether an interrupt waits that PIC or APIC would deliver now;
// whether the CPU takes it (IF, shadows) is for the caller to know.
func (b *Board) Pending() bool {
	d := b.d
	return d.apic.ExtINT() && d.pic.Pending() || d.apic.Pending()
}

// Requested says whether any unmasked interrupt waits, also one that can't be
// delivered yet: a timer that fired now might be lost in it.
func (b *Board) Requested() bool {
	d := b.d
	return d.apic.ExtINT() && d.pic.Requested() || d.apic.Requested()
}

// Ack takes the interrupt and returns its vector. The PIC's come first: no
// priority of the APIC holds them back. If none waits (any more) the vector is
// a spurious one, as the hardware's.
func (b *Board) Ack() uint8 {
	d := b.d
	if d.apic.ExtINT() && (d.pic.Pending() || !d.apic.Pending()) {
		return d.pic.Ack()
	}
	return d.apic.Ack()
}

// CR8 is the task priority as the CPU's register CR8 has it.
func (b *Board) CR8() uint64 { return uint64(b.d.apic.TPR >> 4) }

// SetCR8 sets the task priority from CR8.
func (b *Board) SetCR8(v uint64) { b.d.apic.TPR = uint8(v<<4) & 0xf0 }
