package matrix

import (
	"fmt"
	"strings"
	"time"
)

// When is what the pair does at the moment.
type When int

// The moments.
const (
	Protected     When = iota // in lockstep
	Seeding                   // the secondary's state is on its way
	SwitchingOver             // the roles are being exchanged
)

func (w When) String() string { return [...]string{"protected", "seeding", "switching-over"}[w] }

// Side says on whom something breaks.
type Side int

// The sides. While roles are exchanged, the primary is the one that was it before.
const (
	Primary Side = iota
	Secondary
	Both
)

func (s Side) String() string { return [...]string{"primary", "secondary", "both"}[s] }

// Serves says who runs the guest while the fault lasts.
type Serves int

// The answers.
const (
	Stays  Serves = iota // the host that ran it before
	Moves                // the other one
	Either               // one of them, and which one is a matter of microseconds
	Unseen               // the host that ran it before, but nobody reaches it until the fault is healed
	Waits                // nobody, until the fault is healed; then the host that ran it before, or either if Restarts
)

func (s Serves) String() string {
	return [...]string{"the same host", "the other host", "one of them", "the same host, which clients don't reach", "nobody, until it's over"}[s]
}

// Harm is a fault on a side.
type Harm struct {
	Fault
	On Side
}

// Cell is one entry of the matrix.
type Cell struct {
	When   When
	Harm   []Harm // what breaks, at once
	Serves Serves
	// Wait is the longest that any client may go without an answer, the time of a fault that Waits not included.
	Wait time.Duration
	// Calm says that no role changes, not even for a moment.
	Calm bool
	// Slows says that the primary slows down so that the secondary's lag stays within its limit.
	Slows bool
	// Restarts says that the guest starts anew from its disk: all connections are lost, and nothing else.
	Restarts bool
	// Says is a piece of what a host tells of it while it lasts, as the VM's error or by an event.
	Says string
	// Sees is what the user sees, beside Serves and Wait.
	Sees string
	// Quick cells are part of make test.
	Quick bool
}

// Name is unique, and has no blanks: when:what-whom[+what-whom].
func (c Cell) Name() string {
	var harm []string
	for _, h := range c.Harm {
		harm = append(harm, h.Name+"-"+h.On.String())
	}
	return c.When.String() + ":" + strings.Join(harm, "+")
}

// Breaks says what breaks, in words.
func (c Cell) Breaks() string {
	var harm []string
	for _, h := range c.Harm {
		whom := "the " + h.On.String()
		if h.On == Both {
			whom = "both"
		}
		text := h.Text
		if strings.Contains(text, "%s") {
			text = strings.ReplaceAll(text, "%s", whom)
		}
		harm = append(harm, strings.ReplaceAll(text, "%%", "%"))
	}
	return strings.Join(harm, ", and ")
}

// lasts is how long the cell's faults stay.
func (c Cell) lasts() (d time.Duration) {
	for _, h := range c.Harm {
		d = max(d, h.lasts)
	}
	return d
}

// Table is the README's text for the cells: what the user sees, for each.
func Table(cells []Cell) string {
	var b strings.Builder
	for _, w := range []When{Protected, Seeding, SwitchingOver} {
		fmt.Fprintf(&b, "### While the VM is %s\n\n", [...]string{"protected", "being seeded", "switched over"}[w])
		b.WriteString("| what breaks | who runs the guest then | clients wait at most | and |\n| --- | --- | --- | --- |\n")
		for _, c := range cells {
			if c.When == w {
				fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.Breaks(), c.Serves, c.wait(), c.sees())
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (c Cell) wait() string {
	switch {
	case c.Restarts:
		return "they are cut off"
	case c.Serves == Waits || c.Serves == Unseen:
		return fmt.Sprintf("%.0f s longer than that", c.Wait.Seconds())
	}
	return fmt.Sprintf("%.0f s", c.Wait.Seconds())
}

// sees is what a user sees, what follows from the other fields included.
func (c Cell) sees() string {
	var all []string
	if c.Calm {
		all = append(all, "protected all the while")
	}
	if c.Slows {
		all = append(all, "the primary slows down, so that the secondary's lag stays under 100 ms (emulated: 1 s)")
	}
	if c.Restarts {
		all = append(all, "the guest starts from its disk, with every write that it acknowledged")
	}
	if c.Sees != "" {
		all = append(all, c.Sees)
	}
	if c.Says != "" {
		all = append(all, fmt.Sprintf("`duet` says: \"%s\"", c.Says))
	}
	return strings.Join(all, "; ")
}
