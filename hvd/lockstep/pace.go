package lockstep

import "time"

const (
	// paceRun is how long a guest that is slowed down runs between two stops.
	paceRun = 5 * time.Millisecond
	// maxStop is how long it stands still at most, until it runs for a moment.
	maxStop = 50 * time.Millisecond
	// leastWindow is the least of a guest's work that may be under way.
	leastWindow = time.Millisecond
	// maxSent bounds the batches that are timed one by one; with more on the way,
	// new ones count with the last.
	maxSent = 4096
	// stuckFor is how long a lag must be seen: after a stop of the whole host the
	// acknowledgements come first.
	stuckFor = time.Second
)

// Pace slows a primary's guest down while its secondary lags: it stands still while
// more than a window of its work is on the way to the secondary or waits there. Work
// is the time that the guest ran. The lag of what it does then is the window divided
// by the secondary's speed, so the window is at first a third of MaxLag, shrinks when
// acknowledgements show a lag of more than 80 % of that, and grows again when they show
// one of less than 40 %. What acknowledgements show is late by that very lag;
// so only those count that are of log which was sent under the present window.
//
//	guest runs --more than the window is under way--> stands still
//	  ^  at least 5 ms                                  |
//	  +-- no more than the window is, or 50 ms are over +
type Pace struct {
	MaxLag time.Duration

	batches []sentBatch // not executed
	window  time.Duration
	version int           // of the window
	stood   time.Duration // in all, but for the present stop
	stands  time.Time     // since when the guest stands still; zero: it runs
	ran     time.Time     // since when it ran last
}

// sentBatch is a piece of the log that was sent.
type sentBatch struct {
	end     uint64 // LSN behind it
	at      time.Time
	stood   time.Duration // Pace.stood then
	version int           // of the window
}

// Reset forgets what was sent: another log begins.
func (p *Pace) Reset() {
	p.batches, p.window = nil, p.MaxLag/3
	p.version++
}

// Sent notes that the log up to an LSN goes to the secondary.
func (p *Pace) Sent(now time.Time, end uint64) {
	if n := len(p.batches); n >= maxSent {
		p.batches[n-1].end = end
		return
	}
	p.batches = append(p.batches, sentBatch{end, now, p.stood, p.version})
}

// Executed notes that the secondary has executed the log up to an LSN.
func (p *Pace) Executed(now time.Time, lsn uint64) {
	n := 0
	for n < len(p.batches) && p.batches[n].end <= lsn {
		n++
	}
	if n == 0 {
		return
	}
	last := p.batches[n-1]
	p.batches = p.batches[n:]
	if last.version != p.version {
		return
	}
	switch lag, much, most := now.Sub(last.at), p.MaxLag*4/5, p.MaxLag/3; {
	case lag > much:
		p.window = max(leastWindow, time.Duration(float64(p.window)*float64(much)/float64(lag)))
		p.version++
	case lag < much/2 && p.window < most:
		p.window = min(most, p.window*5/4)
		p.version++
	}
}

// Lag is the age of the oldest log that the secondary hasn't executed.
func (p *Pace) Lag(now time.Time) time.Duration {
	if len(p.batches) == 0 {
		return 0
	}
	return now.Sub(p.batches[0].at)
}

// Near says that no more than the window is under way.
func (p *Pace) Near(now time.Time) bool {
	if len(p.batches) == 0 {
		return true
	}
	stood := p.stood
	if !p.stands.IsZero() {
		stood += now.Sub(p.stands)
	}
	return p.Lag(now)-(stood-p.batches[0].stood) <= p.window
}

// Stop says for how long the guest is to stand still from now on, at most: until the
// secondary is near. 0: it runs on. After a stop comes Stood.
func (p *Pace) Stop(now time.Time) time.Duration {
	if p.Near(now) || now.Sub(p.ran) < paceRun {
		return 0
	}
	p.stands = now
	return maxStop
}

// Stood notes that the guest runs again.
func (p *Pace) Stood(now time.Time) {
	p.stood += now.Sub(p.stands)
	p.stands, p.ran = time.Time{}, now
}

// Laggard finds a secondary that is too far behind to be waited for: its lag is over
// Limit for a second.
type Laggard struct {
	Limit time.Duration

	since time.Time // when it was seen first; zero: it isn't
}

// Stuck takes the present lag in, and says that the secondary should be dropped.
func (l *Laggard) Stuck(now time.Time, lag time.Duration) bool {
	switch {
	case lag <= l.Limit:
		l.since = time.Time{}
	case l.since.IsZero():
		l.since = now
	case now.Sub(l.since) >= stuckFor:
		l.since = time.Time{} // told; once more a second later
		return true
	}
	return false
}
