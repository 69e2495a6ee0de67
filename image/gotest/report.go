package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// event is a line of go test -json (go doc test2json), as far as it is of use here.
type event struct {
	Action  string // run, output, build-output, pass, skip, fail ...
	Package string
	Test    string // "" where a line belongs to the package
	Output  string
	Elapsed float64 // seconds, where a test ends
}

// slow is from how many seconds on a test that passed is shown, so that one sees where the time goes.
const slow = 10

type test struct{ pkg, name string }

// report turns go test's events into what is shown.
type report struct {
	said    map[test]string // output of tests that haven't ended
	order   []test          // the same tests, as they started
	skipped []string        // a line each
}

func newReport() *report { return &report{said: map[test]string{}} }

// line takes a line that go test -json printed and returns what is to be shown now, "" for nothing. A line that is no
// event is shown as it is.
func (r *report) line(b []byte) string {
	var e event
	if err := json.Unmarshal(b, &e); err != nil {
		return string(b) + "\n"
	}
	t := test{e.Package, e.Test}
	switch {
	case e.Action == "build-output":
		return e.Output
	case e.Test == "":
		return r.ofPackage(e)
	case e.Action == "run":
		r.order = append(r.order, t)
	case e.Action == "output":
		r.said[t] += e.Output
	case e.Action == "pass":
		delete(r.said, t)
		if e.Elapsed >= slow {
			return fmt.Sprintf("pass\t%s %s\t%.0fs\n", e.Package, e.Test, e.Elapsed)
		}
	case e.Action == "skip":
		r.skipped = append(r.skipped, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(r.said[t])))
		delete(r.said, t)
	case e.Action == "fail":
		text := r.said[t]
		delete(r.said, t)
		return text
	}
	return ""
}

// ofPackage handles an event without a test. When a package fails while tests of it are under way (a panic, a time
// limit), what they said is the reason.
func (r *report) ofPackage(e event) string {
	switch e.Action {
	case "output":
		if e.Output == "PASS\n" || strings.HasSuffix(e.Output, "[no test files]\n") {
			return ""
		}
		return e.Output
	case "fail":
		text := ""
		for _, t := range r.order {
			if t.pkg == e.Package {
				text += r.said[t]
				delete(r.said, t)
			}
		}
		return text
	}
	return ""
}

// skips lists the skipped tests, a line each; "" if there are none.
func (r *report) skips() string {
	if len(r.skipped) == 0 {
		return ""
	}
	return fmt.Sprintf("skipped (%d):\n  %s\n", len(r.skipped), strings.Join(r.skipped, "\n  "))
}

// source is what testing puts before a line that a test logs: the file and the line in it.
var source = regexp.MustCompile(`^[^ :]+\.go:\d+: `)

// reason is the last thing that a skipped test said.
func reason(said string) string {
	last := "no reason given"
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			last = source.ReplaceAllString(line, "")
		}
	}
	return last
}
