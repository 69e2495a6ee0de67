package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMain lets the test binary be hvd.
func TestMain(m *testing.M) {
	if os.Getenv("DUET_TEST_AS_HVD") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// hvd runs the program.
func hvd(t *testing.T, args ...string) (status int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), "DUET_TEST_AS_HVD=1")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

func TestCommandLines(t *testing.T) {
	dir := t.TempDir()
	bad, key := filepath.Join(dir, "bad.json"), filepath.Join(dir, "key")
	if err := os.WriteFile(bad, []byte(`{"nmae": "a"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	nowhere := filepath.Join(dir, "nowhere")
	for _, c := range []struct {
		line, out, errs string // standard error; a ":" at its end stands for the hint
		status          int
	}{
		{"help", usage, "", 0},
		{"--help", usage, "", 0},
		{"explode", "", "hvd: wrong use: there is no hvd explode:", 2},
		{"--explode", "", "hvd: wrong use: there is no hvd --explode:", 2},
		{"vm", "", "hvd: wrong use: a VM's process takes --run and the VM's name:", 2},
		{"vm --run " + dir, "", "hvd: wrong use: a VM's process takes --run and the VM's name:", 2},
		{"vm --run " + dir + " a b", "", "hvd: wrong use: a VM's process takes --run and the VM's name:", 2},
		{"vm --explode", "", "hvd: wrong use: flag provided but not defined: -explode:", 2},
		// The daemon shows a VM's errors with the VM's name in front.
		{"vm --config " + bad + " --key " + key + " --run " + dir + " db", "", bad + `: unknown field "nmae"`, 1},
		{"vm --config " + nowhere + " --key " + key + " --run " + dir + " db", "", "this host has no key: open " + key + ": no such file or directory", 1},
		{"volume", "", "hvd: wrong use: hvd volume does what? It can format, check, list, repair, rollback, release, discover, create:", 2},
		{"volume list", "", "hvd: wrong use: which volume? Give --portal and --target, or --file:", 2},
		{"disk", "", "hvd: wrong use: hvd disk does what? It can import:", 2},
		{"disk explode", "", "hvd: wrong use: there is no hvd disk explode:", 2},
	} {
		t.Run(c.line, func(t *testing.T) {
			want := c.errs
			if line, ok := strings.CutSuffix(want, ":"); ok {
				want = line + "; " + hint + "\n"
			} else if want != "" {
				want += "\n"
			}
			status, out, errs := hvd(t, strings.Fields(c.line)...)
			if status != c.status || out != c.out || errs != want {
				t.Errorf("status %d, want %d; output %q, want %q; error\n%s, want\n%s", status, c.status, out, c.out, errs, want)
			}
		})
	}
}

// TestVersion names a program by its contents, and by its revision where that is known.
func TestVersion(t *testing.T) {
	status, out, errs := hvd(t, "version")
	if status != 0 || errs != "" || !regexp.MustCompile(`^([0-9a-f]{12}(\+changes)? )?[0-9a-f]{12}\n$`).MatchString(out) {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
	if out != version()+"\n" {
		t.Errorf("the same program calls itself %q and %q", out, version())
	}
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "hvd")
	if err := os.WriteFile(other, append(b, 0), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), other, "version")
	cmd.Env = append(os.Environ(), "DUET_TEST_AS_HVD=1")
	if b, err := cmd.Output(); err != nil || string(b) == out {
		t.Errorf("another program calls itself %q as well (%v)", b, err)
	}
}
