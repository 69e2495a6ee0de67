package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/flash"
)

func TestConfirm(t *testing.T) {
	target := flash.Target{Path: "/dev/sdb", Name: "sdb", Model: "Ultra", Size: 8e9}
	for answer, ok := range map[string]bool{"sdb\n": true, " sdb": true, "y\n": false, "\n": false, "": false, "/dev/sda\n": false} {
		var out bytes.Buffer
		err := confirm(strings.NewReader(answer), &out, target)
		if (err == nil) != ok {
			t.Errorf("%q: %v", answer, err)
		}
		if out.String() != "All that is on /dev/sdb (Ultra, 8.0 GB) will be erased. Type sdb to go on: " {
			t.Errorf("asked %q", out.String())
		}
	}
}

func TestProgressLine(t *testing.T) {
	var out bytes.Buffer
	p := progressLine(&out, time.Now())
	for i := range int64(1000) {
		p(i+1, 1000)
	}
	lines := strings.Split(out.String(), "\r")
	if n := len(lines); n < 3 || n > 50 || !strings.HasPrefix(lines[1], "writing        0 %") || !strings.HasPrefix(lines[n-1], "reading back 100 %") {
		t.Errorf("%q", lines)
	}
	if err := flashDevice(t.Context(), []string{"/dev/null"}); err == nil || !strings.Contains(err.Error(), "/dev/null is no disk") {
		t.Errorf("/dev/null: %v", err)
	}
}
