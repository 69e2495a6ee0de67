package main

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// show feeds events and returns all that is shown, with the list of skipped tests at the end.
func show(t *testing.T, events ...event) string {
	t.Helper()
	r := newReport()
	text := ""
	for _, e := range events {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		text += r.line(b)
	}
	if len(r.said) > 0 {
		t.Errorf("still kept: %v", r.said)
	}
	return text + r.skips()
}

func TestReport(t *testing.T) {
	for name, c := range map[string]struct {
		events []event
		want   string
	}{
		"passing tests are silent": {
			events: []event{
				{Action: "start", Package: "p"},
				{Action: "run", Package: "p", Test: "TestA"},
				{Action: "output", Package: "p", Test: "TestA", Output: "=== RUN   TestA\n"},
				{Action: "output", Package: "p", Test: "TestA", Output: "    a_test.go:3: hello\n"},
				{Action: "pass", Package: "p", Test: "TestA"},
				{Action: "output", Package: "p", Output: "PASS\n"},
				{Action: "output", Package: "p", Output: "ok  \tp\t0.1s\n"},
				{Action: "pass", Package: "p"},
			},
			want: "ok  \tp\t0.1s\n",
		},
		"slow tests are shown": {
			events: []event{{Action: "pass", Package: "p", Test: "TestA", Elapsed: 61.6}, {Action: "pass", Package: "p", Test: "TestB", Elapsed: 9}},
			want:   "pass\tp TestA\t62s\n",
		},
		"skipped ones say why": {
			events: []event{
				{Action: "run", Package: "p", Test: "TestA/b"},
				{Action: "output", Package: "p", Test: "TestA/b", Output: "=== RUN   TestA/b\n"},
				{Action: "output", Package: "p", Test: "TestA/b", Output: "    a_test.go:3: first\n"},
				{Action: "output", Package: "p", Test: "TestA/b", Output: "    a_test.go:30: no moon: tonight\n"},
				{Action: "output", Package: "p", Test: "TestA/b", Output: "    --- SKIP: TestA/b (0.00s)\n"},
				{Action: "skip", Package: "p", Test: "TestA/b"},
				{Action: "skip", Package: "p", Test: "TestSilent"},
			},
			want: "skipped (2):\n  p TestA/b: no moon: tonight\n  p TestSilent: no reason given\n",
		},
		"failed ones are shown whole": {
			events: []event{
				{Action: "run", Package: "p", Test: "TestA"},
				{Action: "output", Package: "p", Test: "TestA", Output: "    a_test.go:3: one\n"},
				{Action: "output", Package: "p", Test: "TestA", Output: "--- FAIL: TestA (0.00s)\n"},
				{Action: "fail", Package: "p", Test: "TestA"},
				{Action: "output", Package: "p", Output: "FAIL\tp\t0.1s\n"},
				{Action: "fail", Package: "p"},
			},
			want: "    a_test.go:3: one\n--- FAIL: TestA (0.00s)\nFAIL\tp\t0.1s\n",
		},
		"a panic takes its test along": {
			events: []event{
				{Action: "run", Package: "q", Test: "TestB"},
				{Action: "run", Package: "p", Test: "TestA"},
				{Action: "output", Package: "p", Test: "TestA", Output: "panic: oh\n"},
				{Action: "output", Package: "q", Test: "TestB", Output: "fine\n"},
				{Action: "output", Package: "p", Output: "FAIL\tp\t0.1s\n"},
				{Action: "fail", Package: "p"},
				{Action: "pass", Package: "q", Test: "TestB"},
			},
			want: "FAIL\tp\t0.1s\npanic: oh\n",
		},
		"what doesn't compile is shown": {
			events: []event{{Action: "build-output", Output: "a.go:1:1: syntax error\n"}, {Action: "build-fail"}},
			want:   "a.go:1:1: syntax error\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, show(t, c.events...)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestReportShowsWhatIsNoEvent(t *testing.T) {
	if got := newReport().line([]byte("go: no such tool")); got != "go: no such tool\n" {
		t.Errorf("%q", got)
	}
}
