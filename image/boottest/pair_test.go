package boottest

import (
	"context"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/lab/ether"
)

func hostJSON(t *testing.T, cfg hostcfg.Config) map[string][]byte {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"duet/host.json": b}
}

// TestTwoHosts boots two hosts with a direct link, then does to them what the demo does: kill and boot again, freeze,
// and pull cables.
func TestTwoHosts(t *testing.T) {
	l := start(t)
	cable, err := l.NewCable("direct")
	if err != nil {
		t.Fatal(err)
	}
	a := boot(t, l, lab.HostConfig{
		Name: "a", Number: 11, Core: 0, Direct: cable.A, Perm: hostJSON(t, hostcfg.Config{Name: "a"}),
	})
	b := boot(t, l, lab.HostConfig{
		Name: "b", Number: 12, Core: 1, Direct: cable.B, Perm: hostJSON(t, hostcfg.Config{Name: "b"}),
	})
	waitPage(t, a) // meanwhile b boots as well
	waitPage(t, b)
	for _, h := range []*lab.Host{a, b} {
		waitLog(t, h, `netcfg: .*br0 on eth0 \(`+lab.MAC(map[*lab.Host]int{a: 11, b: 12}[h])+`\), direct link on eth1 \(MTU 9000\)`)
		waitLog(t, h, `netcfg: .*DHCP gave `+h.IP()+`/24, router `+lab.GatewayIP)
	}
	// Both ends speak on the direct link (neighbour and multicast discovery of their link-local addresses).
	eventually(t, "frames from both hosts on the direct link", func() bool {
		return cable.A.Counters(ether.FromMachine).Frames > 0 && cable.B.Counters(ether.FromMachine).Frames > 0
	})

	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := a.Boot(); err != nil {
		t.Fatal(err)
	}
	waitPage(t, a)

	if err := b.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	unreachable(t, b)
	if err := b.Cont(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPage(t, b)

	for _, d := range ether.Both {
		b.Port.Cut(d, true)
		unreachable(t, b)
		b.Port.Cut(d, false)
		waitPage(t, b)
	}
}

// TestStaticAddress boots a host whose host.json fixes its address, other than DHCP's.
func TestStaticAddress(t *testing.T) {
	l := start(t)
	h := boot(t, l, lab.HostConfig{Name: "static", Number: 13, Perm: map[string][]byte{
		"duet/host.json": []byte(`{"static": {"address": "` + lab.IP(13) + `/24", "gateway": "` + lab.GatewayIP + `"}}`),
	}})
	waitPage(t, h)
	waitLog(t, h, `netcfg: .*static address `+lab.IP(13)+`/24, router `+lab.GatewayIP)
}

// TestBadHostJSON boots a host whose host.json has a mistake: it must say so and stay reachable.
func TestBadHostJSON(t *testing.T) {
	l := start(t)
	h := boot(t, l, lab.HostConfig{Name: "bad", Number: 14, Perm: map[string][]byte{
		"duet/host.json": []byte(`{"nmae": "a"}`),
	}})
	waitPage(t, h)
	waitLog(t, h, `netcfg: .*/perm/duet/host.json: unknown field "nmae"; going on with the defaults`)
}

// TestNoKVM boots a host whose firmware has virtualization switched off. It must say what to do, once, and stay reachable.
func TestNoKVM(t *testing.T) {
	l := start(t)
	h := boot(t, l, lab.HostConfig{
		Name: "nokvm", Number: 15, Perm: hostJSON(t, hostcfg.Config{Name: "nokvm"}), Extra: []string{"-cpu", "max,-svm"},
	})
	waitPage(t, h)
	const line = "no KVM: this host can't run virtual machines: there is no /dev/kvm; switch virtualization (VT-x or SVM) on in the firmware set-up"
	waitLog(t, h, "hvd: "+regexp.QuoteMeta(line))
	waitLog(t, h, "hvd: no volume: host.json names none") // hvd goes on, past its look at KVM
	b, err := os.ReadFile(h.ProgramsLog())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), line); n != 1 {
		t.Errorf("it is said %d times: %s", n, line)
	}
}

func waitLog(t *testing.T, h *lab.Host, re string) {
	t.Helper()
	if _, err := h.WaitLog(regexp.MustCompile(re), 0, time.Minute); err != nil {
		t.Fatal(err)
	}
}

// unreachable checks that the host's page does not answer.
func unreachable(t *testing.T, h *lab.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if status, _, err := h.Get(ctx, "/"); err == nil {
		t.Errorf("host %s answers with status %d although it is cut off", h.Name(), status)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
