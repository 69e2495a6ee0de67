package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
)

// figures are a benchmark's, by unit.
type figures map[string]float64

// result is a line that a benchmark printed.
type result struct {
	name string // without "Benchmark" and the number of processors
	figures
}

// processors is what a name ends with where GOMAXPROCS isn't 1.
var processors = regexp.MustCompile(`-\d+$`)

// parse finds the lines of benchmarks in what a test binary prints (the format
// is Go's design document 14313): name, iterations, then pairs of value and
// unit.
func parse(r io.Reader) []result {
	var list []result
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || len(fields)%2 != 0 {
			continue
		}
		name, ok := strings.CutPrefix(fields[0], "Benchmark")
		if _, err := strconv.Atoi(fields[1]); !ok || err != nil {
			continue
		}
		of := figures{}
		for i := 2; i < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				of[fields[i+1]] = v
			}
		}
		list = append(list, result{processors.ReplaceAllString(name, ""), of})
	}
	return list
}

// row is what was measured twice: with the guest alone, and recorded.
type row struct {
	name            string
	alone, recorded figures
}

// What the names of hvd/vm's benchmarks have in the middle.
const (
	alone    = "/alone/"
	recorded = "/recorded/"
)

// compare joins what was measured twice, in the order of the second time.
func compare(list []result) []row {
	first := map[string]figures{}
	var rows []row
	for _, r := range list {
		if _, name, ok := strings.Cut(r.name, alone); ok {
			first[name] = r.figures
		} else if _, name, ok := strings.Cut(r.name, recorded); ok && first[name] != nil {
			rows = append(rows, row{name, first[name], r.figures})
		}
	}
	return rows
}

// table shows the rows; unit is what is counted as ns.
func table(rows []row, unit string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\nrecorded against alone (%s)\n", unit)
	fmt.Fprintln(w, "\talone\trecorded\tratio\tthe guest's thread: alone\trecorded\tratio\texits\tticks\tlog bytes\tresync bytes\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t", r.name)
		for _, unit := range []string{"cpu-ns/op", "guest-ns/op"} {
			a, b := r.alone[unit], r.recorded[unit]
			fmt.Fprintf(w, "%.0f\t%.0f\t%s\t", a, b, ratio(b, a))
		}
		fmt.Fprintf(w, "%.2f\t%.2f\t%.1f\t%.0f\t\n", r.recorded["exits/op"], r.recorded["ticks/op"], r.recorded["log-B/op"], r.recorded["resync-B/op"])
	}
	_ = w.Flush() // to memory
	for _, r := range rows {
		for _, f := range sizes {
			if v, ok := r.recorded[f.unit]; ok {
				fmt.Fprintf(&b, "%s: %.*f %s\n", r.name, f.digits, v, f.means)
			}
		}
	}
	return b.String()
}

// sizes are figures that only some rows have.
var sizes = []struct {
	unit   string
	digits int
	means  string
}{
	{"log-B/read", 1, "bytes of log a read of the disk"},
	{"%refs", 0, "% of these reads by reference"},
	{"log-B/ref", 1, "bytes of log a reference"},
	{"log-B/received-B", 3, "bytes of log a byte received"},
	{"B/resync", 0, "bytes a resync"},
}

// replays is the line about a boot that was recorded and replayed.
func replays(list []result, unit string) string {
	for _, r := range list {
		if r.name == "Replay" {
			line := func(what, of string) string {
				record, replay := r.figures["record-"+of], r.figures["replay-"+of]
				return fmt.Sprintf("a boot (%s): recorded %.0f, replayed %.0f, ratio %s\n", what, record, replay, ratio(replay, record))
			}
			return line(unit+" of the guest's thread", "ns/op") + line(unit+" of all of hvd", "all-ns/op") +
				line("time that passed", "passed-ns/op")
		}
	}
	return ""
}

// ratio is a/b for people.
func ratio(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}
