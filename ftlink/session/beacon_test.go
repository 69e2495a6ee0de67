package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/duet-ft/duet/ftlink/nic/nictest"
	"github.com/vishvananda/netlink"
)

// TestBeacons runs a pair over two virtual cables, as on two hosts: link-local
// addresses, the peer found by beacons, and the cable pulled. It needs a
// network namespace, which it makes for itself.
func TestBeacons(t *testing.T) {
	if !nictest.Alone(t) {
		return
	}
	nictest.Cable(t, "direct")
	nictest.Cable(t, "manage")
	a, b, ha, hb := configs()
	a.Direct, b.Direct = PathConfig{Interface: "direct0"}, PathConfig{Interface: "direct1"}
	a.Management, b.Management = PathConfig{Interface: "manage0"}, PathConfig{Interface: "manage1"}
	la, _ := start(t, a)
	lb, _ := start(t, b)
	if c := ha.want(t, "up").conn; !c.Remote().Addr().IsLinkLocalUnicast() || c.Remote().Addr().Zone() != "direct0" {
		t.Errorf("the peer is at %v", c.Remote())
	}
	hb.want(t, "up")
	beats(t, la, lb, ha, hb, Direct, Management)

	// The cable is pulled: heartbeats go on by the other path, and a stream
	// that carries anything ends.
	nictest.Set(t, "direct0", netlink.LinkSetDown)
	beats(t, la, lb, ha, hb, Management)
	for _, r := range []*recorder{ha, hb} {
		if e := r.want(t, "down"); !errors.Is(e.err, ErrLost) || !strings.Contains(e.err.Error(), "the cable is out") {
			t.Errorf("down: %v", e.err)
		}
	}
	before := la.Stats().Direct.Received

	// And put back.
	nictest.Set(t, "direct0", netlink.LinkSetUp)
	ha.want(t, "up")
	hb.want(t, "up")
	beats(t, la, lb, ha, hb, Direct, Management)
	if s := la.Stats(); s.Direct.Received == before || s.Direct.Unverified != 0 || s.Management.Unverified != 0 {
		t.Errorf("stats %+v", s)
	}
}

// beats waits until a heartbeat sent now has come through each of the paths,
// both ways.
func beats(t *testing.T, la, lb *Link, ha, hb *recorder, paths ...Path) {
	t.Helper()
	nonce := fmt.Sprint("beat ", la.Stats().Direct.Sent, paths)
	missing := map[string]bool{}
	for _, p := range paths {
		missing["alpha "+p.String()], missing["beta "+p.String()] = true, true
	}
	until(t, "heartbeats", func() bool {
		for _, l := range []*Link{la, lb} {
			if err := l.SendHeartbeat([]byte(nonce)); err != nil {
				t.Fatal(err)
			}
		}
		for who, r := range map[string]*recorder{"alpha": ha, "beta": hb} {
			for _, p := range r.heartbeats(nonce) {
				delete(missing, who+" "+p.String())
			}
		}
		return len(missing) == 0
	})
}

// heartbeats takes the paths on which a payload came, and leaves what isn't a
// heartbeat in the queue.
func (r *recorder) heartbeats(payload string) []Path {
	var paths []Path
	for range len(r.events) {
		e := <-r.events
		if e.what != "heartbeat" {
			r.events <- e
		} else if e.payload == payload {
			paths = append(paths, e.path)
		}
	}
	return paths
}
