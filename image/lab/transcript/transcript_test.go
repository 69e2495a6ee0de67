package transcript

import (
	"context"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestWait(t *testing.T) {
	c := New()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go func() { _, _ = io.WriteString(c, "one\r\ntwo\nlogin: ") }()
	if line, err := c.Wait(ctx, regexp.MustCompile(`login: $`), 0); err != nil || line != "login: " {
		t.Fatalf("a prompt without an end of line: %q, %v", line, err)
	}
	if line, err := c.Wait(ctx, regexp.MustCompile(`^one$`), 0); err != nil || line != "one" {
		t.Fatalf("an earlier line: %q, %v", line, err)
	}
	mark := c.Now()
	go func() {
		_, _ = io.WriteString(c, "\ntwo again\n")
		c.End()
	}()
	if line, err := c.Wait(ctx, regexp.MustCompile(`two`), mark); err != nil || line != "two again" {
		t.Fatalf("from a mark: %q, %v", line, err)
	}
	_, err := c.Wait(ctx, regexp.MustCompile(`three`), 0)
	if err == nil || !strings.Contains(err.Error(), "ended before") || !strings.Contains(err.Error(), "two again") {
		t.Errorf("after the end: %v", err)
	}
	if want := uint64(len("one\r\ntwo\nlogin: \ntwo again\n")); c.Bytes() != want {
		t.Errorf("%d bytes counted, want %d", c.Bytes(), want)
	}
}

func TestIsBounded(t *testing.T) {
	c := New()
	for range 3 * maxLines {
		c.add([]byte("x\n"))
	}
	c.add([]byte(strings.Repeat("y", 10*maxLine)))
	if len(c.lines) > maxLines || len(c.partial) > maxLine {
		t.Errorf("%d lines and %d bytes are kept", len(c.lines), len(c.partial))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Wait(ctx, regexp.MustCompile("z"), 0); err == nil {
		t.Error("found what is not there")
	}
}

func TestLines(t *testing.T) {
	l := New()
	write := func(s string) {
		if _, err := l.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	from := l.Now()
	write("two\nthree\nno line")
	if got := l.Lines(from); len(got) != 2 || got[0] != "two" || got[1] != "three" {
		t.Errorf("%q", got)
	}
	if got := l.Lines(from + 9); len(got) != 0 {
		t.Errorf("behind the end: %q", got)
	}
}
