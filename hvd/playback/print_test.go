package playback

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/recording"
)

// sampleFile writes a recording with some entries of the log.
func sampleFile(t *testing.T, cut int) string {
	t.Helper()
	base := event.Base{Pos: 100, Now: 1000}
	enc := event.NewEncoder(base)
	var log []byte
	for _, e := range []event.Entry{
		{Pos: 110, Kind: event.Deadline},
		{Pos: 120, Kind: event.Frame, Data: bytes.Repeat([]byte{0xab}, 100)},
		{Pos: 121, Kind: event.Stop, Traps: 7},
		{Pos: 122, Kind: event.Time, Now: 1500000000},
		{Pos: 130, Kind: event.Deadline},
		{Pos: 130, Kind: event.DiskDone, Disk: 1, ID: 5, Data: make([]byte, 512)},
		{Pos: 140, Kind: event.Mark, Hash: 0xdeadbeef},
	} {
		log = enc.Append(log, e)
	}
	var b bytes.Buffer
	w, err := recording.NewWriter(&b, recording.Head{VM: "db", Memory: recording.PageSize, Machine: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(w.State(base, []byte("{}")), w.Log(log), w.End(recording.End{Position: 141, Why: "its time is over"}))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rec")
	if err := os.WriteFile(path, b.Bytes()[:b.Len()-cut], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLog(t *testing.T) {
	var out strings.Builder
	if err := Log([]string{sampleFile(t, 0)}, &out); err != nil {
		t.Fatal(err)
	}
	rest := out.String()
	for _, want := range []string{
		"110\tdeadline\t1 bytes\n", "120\tframe\t102 bytes\tdata 100: abab", "121\tstop\t2 bytes\tat trap 7\n",
		"122\ttime\t6 bytes\tnow 1.500000000 s\n", "disk 1, request 5, status 0, data 512\n", "fingerprint deadbeef\n",
		"deadline              2            2        1.0\n", "positions 100 to 140",
		"2 timer ticks: 317.5 bytes of log each, 7.5 without packets, disk data and resyncs\n",
		"1 packets: 102.0 bytes of log each, 1.020 bytes a byte received\n", "ends at position 141: its time is over\n",
	} {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("no %q after what comes before it:\n%s", want, out.String())
		}
		rest = after
	}
}

// TestLogCut prints what there is, and what is wrong.
func TestLogCut(t *testing.T) {
	var out strings.Builder
	err := Log([]string{"--summary", sampleFile(t, 5)}, &out)
	if !errors.Is(err, recording.ErrDamaged) || !strings.Contains(out.String(), "2 timer ticks") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if strings.Contains(out.String(), "fingerprint") {
		t.Error("a summary has entries in it")
	}
}

func TestParse(t *testing.T) {
	for line, want := range map[string]string{
		"file --to 5": "file", "--to 5 file": "file", "file": "file", "": "", "a b": "", "--nope file": "",
	} {
		f := flag.NewFlagSet("replay", flag.ContinueOnError)
		f.Uint64("to", 0, "")
		got, err := parse(f, strings.Fields(line))
		if got != want && err == nil || (err != nil) != (want == "") || err != nil && !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
}

func TestPoint(t *testing.T) {
	p := point{exit: 9}
	p.stepped()
	p.arrived(0x10)
	p.arrived(0x10)
	p.stepped()
	p.arrived(0x10)
	q := p.clone()
	q.stepped()
	const want = "position 9, 1 instructions on, arrival 2 at 0x10, 1 instructions on, arrival 1 at 0x10"
	if p.String() != want {
		t.Errorf("%v, want %s", p, want)
	}
}
