package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
)

// tally reads what TestSoak prints, passes on what is for people, and counts the runs that were equal.
type tally struct {
	to io.Writer

	mu      sync.Mutex
	partial []byte
	equal   map[[2]string]int // by workload and kernel
	runs    int
}

func newTally(to io.Writer) *tally { return &tally{to: to, equal: map[[2]string]int{}} }

var (
	equalLine = regexp.MustCompile(`^run: (\S+) seed (\d+) kernel (\S+) .*: equal$`)
	// noise is what a test binary says beside, and the host's kernel.
	noise = regexp.MustCompile(`^(=== RUN|PASS$|--- PASS|NESTED EXIT|\[ *\d+\.\d+\] )`)
)

// Write implements io.Writer.
func (t *tally) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.partial = append(t.partial, p...)
	for {
		line, rest, whole := bytes.Cut(t.partial, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		t.partial = rest
		t.line(strings.TrimRight(string(line), "\r"))
	}
}

func (t *tally) line(line string) {
	if m := equalLine.FindStringSubmatch(line); m != nil {
		t.runs++
		t.equal[[2]string{m[1], m[3]}]++
		line = fmt.Sprintf("%d %s", t.runs, line)
	}
	if line != "" && !noise.MatchString(line) {
		fmt.Fprintln(t.to, line)
	}
}

// summary is a table of the runs that were equal, workloads by kernels.
func (t *tally) summary() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	names, versions := map[string]bool{}, map[string]bool{}
	for k := range t.equal {
		names[k[0]], versions[k[1]] = true, true
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	columns := slices.Sorted(maps.Keys(versions))
	fmt.Fprintf(w, "equal runs\t%s\t\n", strings.Join(columns, "\t"))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		fmt.Fprintf(w, "%s\t", name)
		for _, version := range columns {
			fmt.Fprintf(w, "%d\t", t.equal[[2]string{name, version}])
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // to memory
	return b.String()
}
