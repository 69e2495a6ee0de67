package usage

import (
	"os"
	"testing"
)

func TestOfProcess(t *testing.T) {
	before := OfProcess()
	if before.PID != os.Getpid() || before.ResidentBytes < 1<<20 || before.Files < 3 || before.Goroutines < 1 {
		t.Errorf("%+v", before)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if after := OfProcess(); after.Files != before.Files+1 {
		t.Errorf("one more file is open, and they were %d and are %d", before.Files, after.Files)
	}
}

func TestOfHost(t *testing.T) {
	if memory, files := OfHost(); memory < 1<<20 || files < 3 {
		t.Errorf("%d bytes available, %d files open", memory, files)
	}
}

func TestForeignText(t *testing.T) {
	for text, want := range map[string]uint64{
		"MemTotal: 9 kB\nMemAvailable:   12 kB\n": 12 << 10,
		"MemAvailable:":     0,
		"MemAvailable: x y": 0,
		"":                  0,
	} {
		if got := available([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if got := field([]byte("1 2\n"), 2); got != 0 {
		t.Errorf("a field that isn't there is %d", got)
	}
}
