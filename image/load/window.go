package load

import (
	"slices"
	"time"
)

// maxLatencies is how many latencies of a window are kept; later ones replace the first.
const maxLatencies = 1 << 16

// Window are the requests of a stretch of time.
type Window struct {
	From, To time.Time
	// Requests is how many were answered.
	Requests int
	// Median, P99 and Longest are latencies, of those answered in the window. The longest of all times is kept, the
	// others are of the last 65,536 requests.
	Median, P99, Longest time.Duration
	// Gap is the longest that any one connection went without an answer.
	Gap time.Duration
	// Silence is the longest that all of them together went without one.
	Silence time.Duration
}

// Rate is in requests a second.
func (w Window) Rate() float64 {
	d := w.To.Sub(w.From).Seconds()
	if d <= 0 {
		return 0
	}
	return float64(w.Requests) / d
}

// recorder collects one window. It is pure; times are given.
type recorder struct {
	w         Window
	latencies []time.Duration
	last      []time.Time // answer of each connection
	any       time.Time   // answer of any connection
}

// begin starts a window of the given connections.
func (r *recorder) begin(now time.Time, connections int) {
	*r = recorder{w: Window{From: now}, last: make([]time.Time, connections), any: now}
	for i := range r.last {
		r.last[i] = now
	}
}

// answer notes the answer that a connection got.
func (r *recorder) answer(connection int, sent, got time.Time) {
	latency := got.Sub(sent)
	if len(r.latencies) < maxLatencies {
		r.latencies = append(r.latencies, latency)
	} else {
		r.latencies[r.w.Requests%maxLatencies] = latency
	}
	r.w.Requests++
	r.w.Longest = max(r.w.Longest, latency)
	r.w.Gap = max(r.w.Gap, got.Sub(r.last[connection]))
	r.w.Silence = max(r.w.Silence, got.Sub(r.any))
	r.last[connection], r.any = got, got
}

// end closes the window; connections that wait right now have waited until now.
func (r *recorder) end(now time.Time) Window {
	w := r.w
	w.To = now
	for _, t := range r.last {
		w.Gap = max(w.Gap, now.Sub(t))
	}
	w.Silence = max(w.Silence, now.Sub(r.any))
	if len(r.latencies) > 0 {
		sorted := slices.Clone(r.latencies)
		slices.Sort(sorted)
		w.Median, w.P99 = sorted[len(sorted)/2], sorted[len(sorted)*99/100]
	}
	return w
}
