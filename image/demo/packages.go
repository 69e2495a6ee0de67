package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/duet-ft/duet/image/lab"
)

// packages sees to it that the Debian packages are there that the demo needs: it installs them as root, and else says
// how to.
func packages(ctx context.Context, out *progress) error {
	missing := lab.Missing()
	if len(missing) == 0 {
		return nil
	}
	command := "apt-get install -y --no-install-recommends " + strings.Join(missing, " ")
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing Debian packages; as root: %s", command)
	}
	out.stage("Debian packages")
	out.say("%s", command)
	if _, err := apt(ctx, strings.Fields(command)); err == nil {
		return nil
	}
	out.say("apt-get update") // the lists may be old, or not there yet
	if text, err := apt(ctx, []string{"apt-get", "update"}); err != nil {
		return fmt.Errorf("apt-get update: %w: %s", err, text)
	}
	if text, err := apt(ctx, strings.Fields(command)); err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, text)
	}
	return nil
}

// apt runs a command and returns the last line that it printed.
func apt(ctx context.Context, args []string) (last string, err error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	b, err := cmd.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1], err
}
