package virtio

// A notification costs the guest an exit, and so does the HLT that follows when it
// has nothing else to do. Where one follows the other again and again, the device
// tells the driver not to notify and looks at the queue at each exit instead, HLT
// first of all: one exit is left, however many chains were added.
//
// A guest that goes on with other work after adding a chain would wait for its next
// exit, or for the host to stop it. A chain that is found at a stop is late, and a
// queue with many of those is notified again, for longer each time.
//
//	          Need notifications, each with HLT soon after
//	notified --------------------------------------------> quiet
//	   ^   late chains, one for lateWeight found in time     |
//	   +-----------------------------------------------------+  Need doubles
//
// All of it follows from the guest's own exits and timers, so both copies do it
// alike.

// Quiet says whether a queue is quiet, and what led there.
type Quiet struct {
	On      bool
	Since   uint8  // exits since a notification, from 1; 0: HLT has come, or too much else
	Streak  uint16 // notifications with HLT soon after, in a row
	Need    uint16 // how many of them make the queue quiet; 0: minStreak
	Overdue uint8  // what late chains weigh
}

const (
	minStreak = 4
	maxStreak = 1024
	// soon is how many exits may lie between a notification and its HLT: the guest
	// may notify another queue and set its timer on the way.
	soon = 4
	// lateWeight is how many chains in time make up for a late one.
	lateWeight = 4
	maxOverdue = 3 * lateWeight
)

func (q *Quiet) need() uint16 { return max(q.Need, minStreak) }

// paused notes a pause, for a queue that is notified. It is true when the queue gets
// quiet.
func (q *Quiet) paused(at Pause) bool {
	switch {
	case q.Since == 0 || at == AtTrap || at == AtTime:
		return false
	case at == AtExit && q.Since < soon:
		q.Since++
		return false
	case at != AtHalt:
		q.Since, q.Streak = 0, 0
		return false
	}
	q.Since = 0
	if q.Streak++; q.Streak < q.need() {
		return false
	}
	q.On, q.Streak, q.Overdue = true, 0, 0
	return true
}

// found notes that chains were found in a quiet queue. It is true when the queue has
// to be notified again.
func (q *Quiet) found(at Pause) bool {
	if at != AtTime && at != AtTick {
		if q.Overdue > 0 {
			q.Overdue--
		}
		if q.Need > minStreak {
			q.Need--
		}
		return false
	}
	if q.Overdue += lateWeight; q.Overdue <= maxOverdue {
		return false
	}
	q.On, q.Overdue, q.Need = false, 0, min(2*q.need(), maxStreak)
	return true
}

func (q *Quiet) valid() bool {
	return q.Since <= soon && q.Need <= maxStreak && q.Streak < q.need() && q.Overdue <= maxOverdue
}

// Looked asks for notifications of queue q, unless it is quiet.
func (t *Transport) Looked(q int) { t.AskNotify(q, !t.Queues[q].Quiet.On) }

// Pause says where the guest pauses.
type Pause uint8

// The pauses at which a quiet queue is looked at.
const (
	AtTime Pause = iota // stopped, to be told the time
	AtTick              // the same, and a timer has fired
	AtTrap              // an exit that the guest doesn't know of
	AtExit              // another exit
	AtHalt
)

// Look takes the chains of quiet queues. It is called at each exit and whenever the
// guest is told the time.
func (t *Transport) Look(at Pause) {
	if !t.Live() {
		return
	}
	for i := range t.Queues {
		q := &t.Queues[i]
		switch {
		case !q.Enabled:
		case q.Quiet.On:
			t.find(i, at)
		case q.Quiet.paused(at):
			t.Looked(i)
		}
	}
}

// find takes the chains of quiet queue i.
func (t *Transport) find(i int, at Pause) {
	q := &t.Queues[i]
	if t.Available(i) == 0 {
		return
	}
	before := q.NextAvail
	t.handler.Notify(i)
	switch {
	case !t.Ready(i):
		return
	case q.NextAvail == before: // no room: who makes some takes them
		q.Quiet = Quiet{Need: q.Quiet.Need}
	case !q.Quiet.found(at):
		return
	}
	t.Looked(i)
}

// Unheard is a quiet queue, for a host that looks whether chains wait in it while
// the guest runs: they do when the 16 bits at guest address At aren't Index.
type Unheard struct {
	At    uint64
	Index uint16
}

// Unheard appends the queues that are quiet.
func (t *Transport) Unheard(to []Unheard) []Unheard {
	if !t.Live() {
		return to
	}
	for i := range t.Queues {
		if q := &t.Queues[i]; q.Enabled && q.Quiet.On {
			to = append(to, Unheard{q.Driver + 2, q.NextAvail})
		}
	}
	return to
}
