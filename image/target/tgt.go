package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	tgtName = "iqn.2024-01.org.duet-ft:tgt"
	// tgtControl numbers the daemon's control socket; the directory tells those of
	// several daemons apart.
	tgtControl = "77"
	tgtd       = "/usr/sbin/tgtd"
	tgtadm     = "/usr/sbin/tgtadm"
)

var (
	// ErrTgtMissing says that tgt isn't installed.
	ErrTgtMissing = errors.New("tgt is missing: apt-get install tgt")
	// ErrNotRoot says that tgtd can't run.
	ErrNotRoot = errors.New("tgtd needs root")
)

// StartTgt is Start for tgt. BlockSize is 512, and QueueDepth the program's own.
func StartTgt(ctx context.Context, cfg Config) (*Target, error) {
	for _, tool := range []string{tgtd, tgtadm} {
		if _, err := os.Stat(tool); err != nil {
			return nil, ErrTgtMissing
		}
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	return startAny(ctx, program{name: "tgtd", target: tgtName, lun: 1, command: tgtCommand, set: tgtSet}, cfg)
}

func tgtEnv(c Config) []string {
	return append(os.Environ(), "TGT_IPC_SOCKET="+filepath.Join(c.Dir, "ipc"))
}

func tgtCommand(c Config) (*exec.Cmd, error) {
	portals := "portal=" + net.JoinHostPort(c.Address, strconv.Itoa(c.Port))
	if c.Second {
		portals += ",portal=" + net.JoinHostPort(c.Address, strconv.Itoa(c.secondPort))
	}
	cmd := exec.Command(tgtd, "-f", "-C", tgtControl, "--iscsi", portals)
	cmd.Env = tgtEnv(c)
	return cmd, nil
}

// tgtSet waits for tgtd's control socket and tells it what to serve.
func tgtSet(ctx context.Context, c Config) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := tgtTell(ctx, c, "--op new --mode target --tid 1 -T "+tgtName)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
	steps := []string{
		"--op new --mode logicalunit --tid 1 --lun 1 -b " + c.File,
		"--op bind --mode target --tid 1 -I ALL",
	}
	account := func(user, secret, how string) {
		steps = append(steps, "--op new --mode account --user "+user+" --password "+secret,
			"--op bind --mode account --tid 1 --user "+user+how)
	}
	if c.User != "" {
		account(c.User, c.Secret, "")
	}
	if c.OwnUser != "" {
		account(c.OwnUser, c.OwnSecret, " --outgoing")
	}
	for _, s := range steps {
		if err := tgtTell(ctx, c, s); err != nil {
			return err
		}
	}
	return nil
}

func tgtTell(ctx context.Context, c Config, args string) error {
	cmd := exec.CommandContext(ctx, tgtadm, append([]string{"-C", tgtControl, "--lld", "iscsi"}, strings.Fields(args)...)...)
	cmd.Env = tgtEnv(c)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tgtadm: %w: %s", err, strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; "))
	}
	return nil
}
