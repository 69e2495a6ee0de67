package guest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// searchPath is PATH with the directories of system programs, which a user's
// shell may leave out.
func searchPath() string { return os.Getenv("PATH") + ":/usr/sbin:/sbin" }

// missing names the Debian packages that a build needs and that aren't
// installed.
func missing() error {
	var names []string
	for _, p := range []struct{ program, pkg string }{
		{"mmdebstrap", "mmdebstrap"}, {"mke2fs", "e2fsprogs"}, {"tar", "tar"}, {"apt-get", "apt"},
	} {
		found := slices.ContainsFunc(filepath.SplitList(searchPath()), func(dir string) bool {
			return exists(filepath.Join(dir, p.program))
		})
		if !found {
			names = append(names, p.pkg)
		}
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: packages are missing: apt-get install %s", ErrUnavailable, strings.Join(names, " "))
	}
	return nil
}

// mode is how mmdebstrap gets the rights to own files as root.
type mode struct{ name string }

// findMode takes root's rights where there are, else a user namespace.
func findMode(ctx context.Context) (mode, error) {
	if os.Geteuid() == 0 {
		return mode{"root"}, nil
	}
	m := mode{"unshare"}
	cmd := m.helper()
	out, err := exec.CommandContext(ctx, cmd[0], append(cmd[1:], "true")...).CombinedOutput()
	if err != nil {
		return mode{}, fmt.Errorf("%w: it takes root, or user namespaces with a range in /etc/subuid (package uidmap): %s",
			ErrUnavailable, bytes.TrimSpace(out))
	}
	return m, nil
}

// helper is the command line to put before a command that acts as root on the
// guest's files; it may be empty.
func (m mode) helper() []string {
	if m.name == "unshare" {
		return []string{"mmdebstrap", "--unshare-helper"}
	}
	return []string{"/usr/bin/env"}
}

// open lets the user namespace's root, who is somebody else outside, write to
// the given paths.
func (m mode) open(paths ...string) error {
	if m.name != "unshare" {
		return nil
	}
	for _, p := range paths {
		perm := os.FileMode(0o666)
		if info, err := os.Stat(p); err != nil {
			return err
		} else if info.IsDir() {
			perm = 0o777
		}
		if err := os.Chmod(p, perm); err != nil {
			return err
		}
	}
	return nil
}

// aptSources returns the lines of the host's own apt sources for the guest's
// suite, so that the host's mirror serves both; "" if the host runs another
// release, and then mmdebstrap's defaults serve. root is "/" but in tests.
func aptSources(root string) (string, error) {
	release, err := os.ReadFile(filepath.Join(root, "etc/os-release"))
	if err != nil || !slices.Contains(strings.Fields(string(release)), "VERSION_CODENAME="+suite) {
		return "", nil
	}
	files, err := filepath.Glob(filepath.Join(root, "etc/apt/sources.list.d/*"))
	if err != nil {
		return "", err
	}
	var lines []string
	for _, name := range append([]string{filepath.Join(root, "etc/apt/sources.list")}, files...) {
		b, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		switch filepath.Ext(name) {
		case ".list":
			lines = append(lines, oneLine(string(b))...)
		case ".sources":
			lines = append(lines, deb822(string(b))...)
		}
	}
	if len(lines) == 0 {
		return "", nil
	}
	return strings.Join(lines, "\n") + "\n", nil
}

// debian tells whether a suite and its components are the distribution's own,
// and not somebody's repository for it.
func debian(name string, components []string) bool {
	return slices.Contains([]string{suite, suite + "-updates", suite + "-security"}, name) && slices.Contains(components, "main")
}

// oneLine reads sources of the form "deb [options] URI suite component...",
// sources.list(5).
func oneLine(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		if i := strings.Index(rest, "]"); strings.HasPrefix(strings.TrimSpace(rest), "[") && i >= 0 {
			rest = rest[i+1:]
		}
		if f := strings.Fields(rest); len(f) >= 3 && debian(f[1], f[2:]) {
			lines = append(lines, fmt.Sprintf("deb %s %s main", f[0], f[1]))
		}
	}
	return lines
}

// deb822 reads sources as stanzas of "Field: values".
func deb822(text string) []string {
	var lines []string
	for stanza := range strings.SplitSeq(text, "\n\n") {
		field := map[string][]string{}
		last := ""
		for line := range strings.Lines(stanza) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			if line[0] == ' ' || line[0] == '\t' {
				field[last] = append(field[last], strings.Fields(line)...)
				continue
			}
			if name, value, ok := strings.Cut(line, ":"); ok {
				last = strings.ToLower(name)
				field[last] = strings.Fields(value)
			}
		}
		if !slices.Contains(field["types"], "deb") || slices.Contains(field["enabled"], "no") {
			continue
		}
		for _, uri := range field["uris"] {
			for _, s := range field["suites"] {
				if debian(s, field["components"]) {
					lines = append(lines, fmt.Sprintf("deb %s %s main", uri, s))
				}
			}
		}
	}
	return lines
}

// aptOptions are those of the host's apt settings without which its mirror
// may not be reached or believed.
func aptOptions(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "--no-empty").Output()
	if err != nil {
		return nil
	}
	var options []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		for _, name := range []string{"Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date"} {
			if strings.HasPrefix(line, name+" ") || strings.HasPrefix(line, name+"::") {
				options = append(options, line)
			}
		}
	}
	return options
}
