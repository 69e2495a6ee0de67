package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
)

func TestPairFiles(t *testing.T) {
	files, err := pairFiles(hostcfg.Volume{Portal: "192.0.2.1", Target: "iqn.2026-01.example:duet", User: "duet", Secret: "123456789012"})
	if err != nil {
		t.Fatal(err)
	}
	parse := func(host string) *hostcfg.Config {
		t.Helper()
		c, err := hostcfg.Parse(files[host+"/duet/host.json"])
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := parse("a"), parse("b")
	if a.Name != "a" || b.Name != "b" || a.Token == "" || a.Token != b.Token || a.Volume.Portal != "192.0.2.1:3260" {
		t.Errorf("a %+v, b %+v", a, b)
	}
	for host, peer := range map[string]*hostcfg.Config{"a": b, "b": a} {
		key, err := hostkey.Parse(files[host+"/duet/host.key"])
		if err != nil {
			t.Fatal(err)
		}
		pinned, err := peer.Peer.PublicKey()
		if err != nil || !pinned.Equal(key.Public()) || peer.Peer.Name != host {
			t.Errorf("%s pins %v as %s, %v", peer.Name, pinned, peer.Peer.Name, err)
		}
	}
	if _, err := pairFiles(hostcfg.Volume{Portal: "192.0.2.1", Target: "no such name"}); err == nil {
		t.Error("a bad target name passes")
	}
}

func TestPermNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	args := []string{"-portal", "192.0.2.1", "-target", "iqn.2026-01.example:duet", dir}
	if err := perm(args); err != nil {
		t.Fatal(err)
	}
	files, err := readFiles(filepath.Join(dir, "b"))
	if err != nil || len(files) != 3 || len(files["gokr-pw.txt"]) != passwordLetters+1 || len(files["duet/host.key"]) == 0 || !strings.Contains(string(files["duet/host.json"]), `"name": "b"`) {
		t.Errorf("%q, %v", files, err)
	}
	if err := perm(args); err == nil {
		t.Error("keys are overwritten")
	}
	if err := os.Symlink("host.key", filepath.Join(dir, "b/duet/link")); err != nil {
		t.Fatal(err)
	}
	if _, err := readFiles(filepath.Join(dir, "b")); err == nil {
		t.Error("a link passes")
	}
}

// TestParse expects help without an error line, and one line about a mistake.
func TestParse(t *testing.T) {
	for line, want := range map[string]string{
		"-n 5":   "",
		"-n x":   `build: invalid value "x" for flag -n: parse error; build -h shows the flags`,
		"--nope": "build: flag provided but not defined: -nope; build -h shows the flags",
	} {
		flags := flag.NewFlagSet("build", flag.ContinueOnError)
		flags.Int("n", 0, "")
		got := ""
		if err := parse(flags, strings.Fields(line)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
