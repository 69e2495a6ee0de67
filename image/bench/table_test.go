package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const printed = `goos: linux
exits of GET: halt 1.00, memory 0xfee000b0 1.00
BenchmarkGuest/alone/GET         	     100	    200000 cpu-ns/op	         4.000 exits/op	    100000 guest-ns/op	         0 log-B/op	         0 resync-B/op
BenchmarkGuest/alone/gone        	     100	    200000 cpu-ns/op
BenchmarkGuest/recorded/GET      	     100	    250000 cpu-ns/op	         4.250 exits/op	         0.5 ticks/op	    110000 guest-ns/op	        90.50 log-B/op	         0 resync-B/op	        41.50 log-B/read	     99 %refs	    1.0125 log-B/received-B
BenchmarkWork/alone/cpu-4      	       2	      1000 cpu-ns/op
BenchmarkWork/recorded/cpu-4   	       2	      1020 cpu-ns/op
BenchmarkGuest/recorded/new      	     100	    250000 cpu-ns/op
BenchmarkExit/kvm                	    1000	      9000 ns/op
BenchmarkReplay-4              	       1	      4000 record-ns/op	      3000 replay-ns/op	      9000 record-passed-ns/op	      4500 replay-passed-ns/op
Benchmark nonsense
PASS
`

func TestCompare(t *testing.T) {
	list := parse(strings.NewReader(printed))
	if len(list) != 8 || list[6].name != "Exit/kvm" || list[6].figures["ns/op"] != 9000 {
		t.Errorf("parsed %+v", list)
	}
	rows := compare(list)
	if len(rows) != 2 || rows[0].name != "GET" || rows[1].name != "cpu" {
		t.Fatalf("rows %+v", rows)
	}
	var fields []string
	for line := range strings.Lines(table(rows, "instructions")) {
		if strings.Contains(line, "GET ") {
			fields = strings.Fields(line)
		}
	}
	for _, line := range []string{
		"GET: 41.5 bytes of log a read of the disk\n", "GET: 99 % of these reads by reference\n", "GET: 1.012 bytes of log a byte received\n",
	} {
		if shown := table(rows, "instructions"); !strings.Contains(shown, line) {
			t.Errorf("no %q in:\n%s", line, shown)
		}
	}
	want := []string{"GET", "200000", "250000", "1.25", "100000", "110000", "1.10", "4.25", "0.50", "90.5", "0"}
	if d := cmp.Diff(want, fields); d != "" {
		t.Error(d)
	}
	for _, line := range []string{
		"thread): recorded 4000, replayed 3000, ratio 0.75\n", "passed): recorded 9000, replayed 4500, ratio 0.50\n",
	} {
		if got := replays(list, "instructions"); !strings.Contains(got, line) {
			t.Errorf("of the replay it says %q", got)
		}
	}
	if got := ratio(1, 0); got != "-" {
		t.Errorf("a ratio to nothing is %q", got)
	}
}
