package supervise

import "time"

const (
	// settled is how long a process must have run for its end to count as the first one again.
	settled = time.Minute
	// firstWait and longestWait bound the pause before another start.
	firstWait   = time.Second
	longestWait = 30 * time.Second
)

// Backoff says how long to wait before a process is started again: not at all the first time, then 1 s, 2 s, 4 s and
// so on up to 30 s, and from the beginning once it has run for a minute. The zero value is ready.
type Backoff struct {
	ended int // times since it last ran for long
}

// Next is told how long the process ran that has just ended, and returns the pause.
func (b *Backoff) Next(ran time.Duration) time.Duration {
	if ran >= settled {
		b.ended = 0
	}
	b.ended++
	if b.ended == 1 {
		return 0
	}
	wait := firstWait
	for i := 2; i < b.ended && wait < longestWait; i++ {
		wait *= 2
	}
	return min(wait, longestWait)
}
