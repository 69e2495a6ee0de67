package checkup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/cockroachdb/datadriven"
)

// good is a host that lacks nothing.
func good() Facts {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return Facts{
		Name: "duet-1a2b3c", Version: "1.2", Addresses: []string{"192.0.2.10", "2001:db8::10"}, Port: 7443,
		Fingerprint: strings.Repeat("ab", 32), CPU: "AMD EPYC 9354", Virtual: "SVM", Nested: true, Microcode: "0xa101148",
		KVM: "ok", Locator: "pmu", Why: "the counters of this Zen passed the self-test", MemoryMiB: 65536,
		NICs: []NIC{
			{Name: "eth0", MAC: "52:54:00:00:00:01", Carrier: true, Use: "management", MTU: 1500},
			{Name: "eth1", MAC: "52:54:00:00:00:02", Carrier: true, Use: "direct", MTU: 9000, Heard: []string{"duet-5e6f7a"}},
		},
		Volume: "ok", PermFree: 900 << 20, PermSize: 1000 << 20, Now: now, Synced: true, Peer: "duet-5e6f7a", Session: "ok",
		CodeUntil: now.Add(15 * time.Minute),
	}
}

// TestTexts compares tables and screens with testdata/texts: each has the good host, changed by a JSON object.
func TestTexts(t *testing.T) {
	datadriven.RunTest(t, "testdata/texts", func(t *testing.T, d *datadriven.TestData) string {
		f := good()
		if strings.Contains(d.Input, `"NICs"`) {
			f.NICs = nil // else a new one would keep what an old one has
		}
		dec := json.NewDecoder(strings.NewReader(d.Input))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&f); err != nil {
			d.Fatalf(t, "%v", err)
		}
		switch d.Cmd {
		case "screen":
			return Screen(f)
		case "check":
			var b bytes.Buffer
			w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
			for _, x := range Findings(f) {
				fmt.Fprintf(w, "%s\t%s\t%s\n", x.What, x.Grade, x.Line)
			}
			w.Flush()
			return b.String()
		}
		d.Fatalf(t, "no directive %s", d.Cmd)
		return ""
	})
}
