package qemu

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStall(t *testing.T) {
	s := time.Second
	var d stall
	if d.observe(0, 0, 0, true) {
		t.Error("stalled at once")
	}
	// An idle machine uses little CPU time, but some.
	for i := time.Duration(1); i < 100; i++ {
		if d.observe(i*s, i*10*time.Millisecond, 7, true) {
			t.Fatalf("an idle machine counts as stalled after %v", i*s)
		}
	}
	base := d
	stalled := 0
	for i := time.Duration(100); i < 200; i++ {
		if d.observe(i*s, 990*time.Millisecond, 7, true) {
			stalled++
		}
	}
	if stalled != 1 {
		t.Errorf("a stall was reported %d times, want once", stalled)
	}
	d = base
	for i := time.Duration(100); i < 200; i++ {
		if d.observe(i*s, 990*time.Millisecond, 7, false) {
			t.Fatal("a machine that was stopped on purpose counts as stalled")
		}
	}
	if d.observe(201*s, 990*time.Millisecond, 7, true) {
		t.Error("a machine counts as stalled just after it goes on")
	}
}

// answerQMP plays QEMU: it greets, sends an event, and answers each command.
func answerQMP(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, `{"QMP": {"version": {}, "capabilities": []}}`+"\r\n")
			for dec := json.NewDecoder(conn); ; {
				var c struct{ Execute string }
				if dec.Decode(&c) != nil {
					break
				}
				answer := `{"event": "RESUME", "data": {}}` + "\r\n" + `{"return": {"status": "running"}}` + "\r\n"
				if c.Execute == "no-such" {
					answer = `{"error": {"class": "CommandNotFound", "desc": "The command no-such has not been found"}}` + "\r\n"
				}
				_, _ = io.WriteString(conn, answer)
			}
		}
	}()
}

func TestQMP(t *testing.T) {
	q := qmp{path: filepath.Join(t.TempDir(), "qmp")}
	if err := q.execute(context.Background(), "stop", nil, nil); err == nil {
		t.Error("no error without QEMU")
	}
	answerQMP(t, q.path)
	var status struct{ Status string }
	if err := q.execute(context.Background(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("query-status: %+v, %v", status, err)
	}
	err := q.execute(context.Background(), "no-such", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "CommandNotFound: The command no-such") {
		t.Errorf("unknown command: %v", err)
	}
	if err := q.execute(context.Background(), "cont", nil, nil); err != nil {
		t.Errorf("after an error: %v", err)
	}
}

func TestArguments(t *testing.T) {
	args, err := arguments(Config{
		Dir: t.TempDir(), MemoryMiB: 512, Disk: "/d.img", Kernel: "/vmlinuz", Cmdline: "ro",
		NICs: []NIC{{MAC: "52:54:00:00:00:01", Socket: "/n0"}, {MAC: "52:54:00:00:00:02", Socket: "/n1"}},
	}, "/qmp")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ro highres=off nohz=off",
		"stream,id=net1,server=off,addr.type=unix,addr.path=/n1",
		"virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,romfile=",
	} {
		if !slices.Contains(args, want) {
			t.Errorf("no argument %q in %q", want, args)
		}
	}
}
