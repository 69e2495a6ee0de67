package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Install sees to it that Packages are there: it installs the missing ones as root, and else its error says how to, in
// one line. say gets each command before it runs.
func Install(ctx context.Context, say func(line string)) error {
	return install(ctx, Missing(), os.Geteuid() == 0, say, apt)
}

// install is Install on a given machine: run executes a command and returns the last line that it printed.
func install(ctx context.Context, missing []string, isRoot bool, say func(string),
	run func(context.Context, []string) (string, error),
) error {
	if len(missing) == 0 {
		return nil
	}
	command := "apt-get install -y --no-install-recommends " + strings.Join(missing, " ")
	if !isRoot {
		return fmt.Errorf("missing Debian packages; as root: %s", command)
	}
	say(command)
	if _, err := run(ctx, strings.Fields(command)); err == nil {
		return nil
	}
	// The lists may be old, or not there yet.
	for _, c := range []string{"apt-get update", command} {
		say(c)
		if last, err := run(ctx, strings.Fields(c)); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, last)
		}
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
