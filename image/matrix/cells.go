package matrix

import "time"

const (
	// soon is a takeover: a second of suspicion, and TCP's next retransmission.
	soon = 8 * time.Second
	// lost is how long it may take until a host counts as one that has lost the volume, and the other one took over.
	lost = 15 * time.Second
	// blink is shorter than it takes to be suspected, also on a computer that does other work.
	blink = 100 * time.Millisecond
)

// Text that several cells share.
const (
	alone  = "unprotected until the host is back"
	again  = "seeded and protected again by itself"
	noMore = "nothing that the old primary wrote late reaches the volume"
	unsafe = "unprotected meanwhile"

	// What hosts say.
	unusable = "the volume can't be used"
	waiting  = "waits: "
)

// one thing that breaks while the VM is protected.
func single(f Fault, on Side, serves Serves, wait time.Duration, sees string) Cell {
	return Cell{When: Protected, Harm: []Harm{{f, on}}, Serves: serves, Wait: wait, Sees: sees}
}

// double is two at once.
func double(f Fault, on Side, g Fault, also Side, serves Serves, wait time.Duration, sees string) Cell {
	return Cell{When: Protected, Harm: []Harm{{f, on}, {g, also}}, Serves: serves, Wait: wait, Sees: sees}
}

func (c Cell) while(w When) Cell {
	c.When = w
	return c
}

func (c Cell) calm() Cell {
	c.Calm = true
	return c
}

func (c Cell) quick() Cell {
	c.Quick = true
	return c
}

func (c Cell) restarts() Cell {
	c.Restarts = true
	return c
}

func (c Cell) slows() Cell {
	c.Slows = true
	return c
}

func (c Cell) says(text string) Cell {
	c.Says = text
	return c
}

// Cells is the matrix.
func Cells() []Cell {
	var all []Cell
	for _, part := range [][]Cell{hosts(), links(), volumes(), pairs(), seedings(), switchovers(), restarts()} {
		all = append(all, part...)
	}
	return all
}

// hosts are faults of one host while the VM is protected.
func hosts() []Cell {
	return []Cell{
		single(killed, Primary, Moves, soon, alone),
		single(killed, Secondary, Stays, soon, alone),
		single(panicked, Primary, Moves, soon, alone),
		single(panicked, Secondary, Stays, soon, alone),
		single(reset, Primary, Moves, soon, alone),
		single(reset, Secondary, Stays, soon, alone),
		single(daemonKilled, Primary, Moves, soon, again),
		single(daemonKilled, Secondary, Stays, soon, again),
		single(processKilled, Primary, Moves, soon, again),
		single(processKilled, Secondary, Stays, soon, again),
		single(frozen(blink), Primary, Stays, soon, "").calm(),
		single(frozen(blink), Secondary, Stays, soon, "").calm(),
		single(frozen(3*time.Second), Primary, Moves, soon, noMore+"; "+again),
		single(frozen(3*time.Second), Secondary, Stays, soon, again),
		single(frozen(40*time.Second), Primary, Moves, soon, noMore+"; "+again),
		single(frozen(40*time.Second), Secondary, Stays, soon, again),
		single(frozen(120*time.Second), Primary, Moves, soon, noMore+"; "+again),
		single(frozen(120*time.Second), Secondary, Stays, soon, again),
		single(suspended(3*time.Second), Primary, Moves, soon, noMore+"; "+again).quick(),
		single(suspended(3*time.Second), Secondary, Stays, soon, again),
		single(suspended(40*time.Second), Primary, Moves, soon, noMore+"; "+again),
		single(slowed(0.5, 8*time.Second), Secondary, Stays, soon, "").calm().slows(),
	}
}

// links are faults of the networks.
func links() []Cell {
	return []Cell{
		single(linkCut, Both, Stays, soon, unsafe),
		single(linkCutFrom, Primary, Either, soon, unsafe).quick(),
		single(linkCutFrom, Secondary, Stays, soon, unsafe),
		single(linkSlow, Both, Stays, soon, "each effect waits that much longer").calm(),
		single(linkLossy, Both, Stays, soon, ""),
		single(clientsCut, Primary, Unseen, soon, "").calm(),
		single(clientsCut, Secondary, Stays, soon, "").calm(),
		single(networkCut, Primary, Moves, lost, unsafe+"; "+noMore),
		single(networkCut, Secondary, Stays, lost, unsafe),
		double(networkCut, Primary, linkCut, Primary, Moves, soon, unsafe+"; "+noMore),
		double(networkCut, Secondary, linkCut, Secondary, Stays, soon, unsafe),
	}
}

// volumes are faults of the way to the volume.
func volumes() []Cell {
	return []Cell{
		single(volumeStalled, Primary, Moves, lost, unsafe+"; "+noMore).quick(),
		single(volumeStalled, Secondary, Stays, soon, unsafe).says(unusable),
		single(volumeStalled, Both, Waits, lost, "requests of its disk wait").says(unusable),
		single(volumeCut, Primary, Moves, lost, unsafe),
		single(volumeCut, Secondary, Stays, soon, unsafe),
		single(volumeCut, Both, Waits, lost, "requests of its disk wait").says(unusable),
		single(volumeBusy, Primary, Moves, lost, unsafe),
		single(volumeBusy, Secondary, Stays, soon, unsafe),
		single(volumeBroken, Primary, Moves, lost, unsafe),
		single(volumeBroken, Secondary, Stays, soon, unsafe),
		single(volumeBroken, Both, Waits, lost, "the guest sees no error: its requests wait, and are tried again").says(waiting),
		single(volumeFull, Both, Waits, soon, "the guest sees no error: its writes wait, and are tried again").says(waiting),
		single(volumeSlow, Both, Stays, soon, "").calm(),
	}
}

// pairs are two faults at once.
func pairs() []Cell {
	return []Cell{
		double(linkCut, Both, killed, Primary, Moves, soon, alone),
		double(linkCut, Both, killed, Secondary, Stays, soon, alone),
		double(frozen(3*time.Second), Primary, linkCut, Both, Moves, soon, noMore+"; "+unsafe),
		double(frozen(3*time.Second), Secondary, linkCut, Both, Stays, soon, unsafe),
		double(volumeStalled, Primary, linkCut, Both, Moves, lost, unsafe+"; "+noMore),
		double(volumeStalled, Secondary, linkCut, Both, Stays, soon, unsafe),
		double(processKilled, Primary, linkCut, Both, Moves, soon, unsafe),
		double(volumeStalled, Secondary, processKilled, Primary, Waits, lost, "the secondary holds the guest, and goes on as soon as it reaches the volume"),
		double(volumeStalled, Secondary, frozen(3*time.Second), Primary, Stays, lost, "nobody else could take over: it goes on when it wakes up"),
		double(volumeSlow, Both, frozen(3*time.Second), Primary, Moves, soon, noMore),
	}
}

// seedings are faults during a state transfer.
func seedings() []Cell {
	return []Cell{
		single(processKilled, Secondary, Stays, soon, again).while(Seeding),
		single(killed, Secondary, Stays, soon, alone).while(Seeding),
		single(frozen(3*time.Second), Secondary, Stays, soon, again).while(Seeding),
		single(frozen(3*time.Second), Primary, Stays, soon, "nobody else has the guest's state: it goes on when it wakes up").while(Seeding),
		single(linkCut, Both, Stays, soon, unsafe).while(Seeding),
		single(networkCut, Secondary, Stays, soon, unsafe).while(Seeding),
		single(volumeStalled, Secondary, Stays, soon, unsafe).while(Seeding),
		single(volumeStalled, Both, Waits, lost, "requests of its disk wait").while(Seeding),
	}
}

// switchovers are faults during a switchover.
func switchovers() []Cell {
	return []Cell{
		single(killed, Primary, Moves, soon, alone).while(SwitchingOver),
		single(killed, Secondary, Stays, soon, alone).while(SwitchingOver),
		single(processKilled, Primary, Moves, soon, again).while(SwitchingOver),
		single(processKilled, Secondary, Stays, soon, again).while(SwitchingOver),
		single(frozen(3*time.Second), Primary, Moves, soon, noMore+"; "+again).while(SwitchingOver),
		single(frozen(3*time.Second), Secondary, Stays, soon, again).while(SwitchingOver),
		single(linkCut, Both, Either, soon, unsafe).while(SwitchingOver),
		single(networkCut, Primary, Moves, lost, unsafe).while(SwitchingOver),
		single(volumeStalled, Primary, Moves, lost, unsafe).while(SwitchingOver),
		single(volumeStalled, Secondary, Stays, lost, unsafe).while(SwitchingOver),
	}
}

// restarts are what no pair survives without a restart of the guest.
func restarts() []Cell {
	return []Cell{
		single(killed, Both, Waits, 0, "").restarts(),
		single(killed, Primary, Waits, 0, "nobody else had its state").while(Seeding).restarts(),
	}
}
