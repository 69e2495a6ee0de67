package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
)

// showing is a demo that runs as a process of its own, as for a user.
type showing struct {
	t       *testing.T
	cmd     *exec.Cmd
	lines   *bufio.Scanner
	said    []string
	scratch string // its temporary files
}

// show starts a demo.
func show(t *testing.T, args ...string) *showing {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped with -short: boots two hosts in QEMU")
	}
	if missing := lab.Missing(); len(missing) > 0 {
		t.Skipf("install the packages %v", missing)
	}
	if _, err := guest.Build(t.Context(), "", func(line string) { t.Log(line) }); errors.Is(err, guest.ErrUnavailable) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "demo")
	if msg, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	s := &showing{t: t, scratch: t.TempDir()}
	s.cmd = exec.Command(bin, args...)
	s.cmd.Env = append(os.Environ(), "TMPDIR="+s.scratch)
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // of a test that failed: QEMU and istgt end with the process that started them
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
	})
	s.lines = bufio.NewScanner(out)
	return s
}

// line reads on to a line that matches, and returns what the parentheses caught.
func (s *showing) line(re string) []string {
	s.t.Helper()
	want := regexp.MustCompile(re)
	for s.lines.Scan() {
		s.t.Log(s.lines.Text())
		s.said = append(s.said, s.lines.Text())
		if m := want.FindStringSubmatch(s.lines.Text()); m != nil {
			return m
		}
	}
	s.t.Fatalf("the demo has ended without a line like %q (%v)", re, s.lines.Err())
	return nil
}

// interrupt presses Ctrl-C: the demo must end with a code and leave nothing behind.
func (s *showing) interrupt(code int) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		s.t.Fatal(err)
	}
	for s.lines.Scan() {
		s.t.Log(s.lines.Text())
	}
	_ = s.cmd.Wait() // the code is looked at
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("exit code %d after Ctrl-C, should be %d", got, code)
	}
	left, err := os.ReadDir(s.scratch)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range left {
		s.t.Errorf("%s stays behind", f.Name())
	}
}

// gone checks that no process of that number is left.
func gone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there (%v)", n, err)
	}
}

// get fetches a page.
func get(t *testing.T, url, token string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	res, err := c.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20)); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v: %.200s", url, res.Status, err, body)
	}
}

// ping asks a Redis whether it is there.
func ping(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 30*time.Second)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "PING\r\n")
	if answer, err := bufio.NewReader(c).ReadString('\n'); answer != "+PONG\r\n" {
		t.Errorf("the guest's Redis answers %q (%v)", answer, err)
	}
}

// TestDemoStays runs the demo as make demo KEEP=1 does: all of it must come out well, the pair must be reachable as it
// says, and nothing may stay behind after Ctrl-C.
func TestDemoStays(t *testing.T) {
	s := show(t, "-keep")
	var r Result
	if err := json.Unmarshal([]byte(s.line(`^RESULT (.*)`)[1]), &r); err != nil {
		t.Fatal(err)
	}
	if !r.ok(true) {
		t.Error("the demo went wrong")
	}
	for _, m := range missed(r) {
		t.Error(m)
	}
	ping(t, s.line(`the guest's Redis: (\S+)`)[1])
	var files []string
	for _, name := range []string{"a", "b"} {
		get(t, s.line(`page of host ` + name + `: (\S+)`)[1], "")
		m := s.line(`interface of host ` + name + `: (\S+) with the token (\S+)`)
		get(t, m[1], m[2])
		m = s.line(`console of host ` + name + `: (\S+); what its programs print: (\S+)`)
		files = append(files, m[1:]...)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() == 0 {
			t.Errorf("%s: nothing there (%v)", f, err)
		}
	}
	pids := s.line(`to kill a host: kill -9 (\d+) \(a\), kill -9 (\d+) \(b\)`)
	s.interrupt(0)
	gone(t, pids[1])
	gone(t, pids[2])
	for _, f := range files {
		if _, err := os.Stat(f); !os.IsNotExist(err) {
			t.Errorf("%s stays (%v)", f, err)
		}
	}
}

// TestDemoInterrupted presses Ctrl-C while the hosts work.
func TestDemoInterrupted(t *testing.T) {
	s := show(t)
	s.line(`hosts a and b booted`)
	s.interrupt(interrupted)
	if said := strings.Join(s.said, "\n"); strings.Contains(said, "RESULT") {
		t.Errorf("a demo that was interrupted has a result:\n%s", said)
	}
}
