package session

import (
	"testing"
	"time"
)

func TestTrips(t *testing.T) {
	var x trips
	now := time.Unix(1, 0)
	if x.median() != 0 {
		t.Error("a time without an echo")
	}
	old := x.ask(now)
	x.answered(old[:echoSize-1], now)
	asked := x.ask(now)
	x.answered(old, now.Add(time.Hour))
	if x.median() != 0 {
		t.Error("an answer to nothing counts")
	}
	x.answered(asked, now.Add(3))
	x.answered(asked, now.Add(1000))
	if got := x.median(); got != 3 {
		t.Errorf("median %d, want 3: twice answered counts once", got)
	}
	for i := range 10 * echoes {
		x.answered(x.ask(now), now.Add(time.Duration(i)))
	}
	if got := x.median(); got != 10*echoes-echoes/2 {
		t.Errorf("median %d of the last", got)
	}
}

// TestEcho: two programs measure the link between them while their stream is up.
func TestEcho(t *testing.T) {
	x, y, hx, hy := configs()
	a, _ := start(t, x)
	b, _ := start(t, y)
	hx.want(t, "up")
	hy.want(t, "up")
	until(t, "echoes", func() bool { return a.EchoTime() != 0 && b.EchoTime() != 0 })
	if got := a.EchoTime(); got > patient {
		t.Errorf("an echo of %v", got)
	}
}
