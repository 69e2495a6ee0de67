// Package target runs Debian's user-space iSCSI targets on a file: istgt, the
// volume of tests and of the demonstration, and tgt, which can do less.
//
// # Place
//
// Tests of hvd/iscsi, hvd/daemon, hvd/volume and the nested tests start them; it
// imports nothing of ours. istgt needs no root: all its files are in one directory,
// and the port is an ordinary one. tgtd needs root.
//
// # What istgt 20111008 does
//
//   - COMPARE AND WRITE up to 255 blocks, atomic among sessions.
//   - PERSISTENT RESERVE: REGISTER, REGISTER AND IGNORE EXISTING KEY, RESERVE,
//     RELEASE, CLEAR, PREEMPT, PREEMPT AND ABORT. Registrations belong to the
//     initiator port (name and ISID) and outlive a session, but not istgt
//     itself. See hvd/iscsi's Session.Fence for its mistake with keys.
//   - A login takes a second, one login at a time: it sleeps.
//   - It keeps nothing in memory that a kill would lose: writes are in the
//     file, so a killed istgt loses none. (A power cut of the machine is
//     another matter: SYNCHRONIZE CACHE is fsync.)
//
// # What tgt 1.0.85 does
//
//   - No COMPARE AND WRITE, though it names a limit for it. No PREEMPT AND ABORT,
//     but PREEMPT and LOGICAL UNIT RESET, which waits for commands under way.
//   - A registration belongs to a session: it is gone after a new login.
//   - Its unit is LUN 1; LUN 0 is a controller.
package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// name is the target's name in the generated configuration.
const name = "iqn.2024-01.org.duet-ft:volume"

// ErrMissing says that istgt isn't installed.
var ErrMissing = errors.New("istgt is missing: apt-get install istgt")

// Config says what to serve.
type Config struct {
	// Dir holds configuration, log and pid file. It is made if need be, and
	// must belong to one target only.
	Dir string
	// File is the volume; it is made, sparse, if it isn't there. Default:
	// volume.img in Dir.
	File string
	// Size of the volume in bytes, a multiple of 1 MiB. 0: the file's.
	Size int64
	// Address to listen on. Default: 127.0.0.1.
	Address string
	// Port to listen on. 0: a free one.
	Port int
	// Second is whether it listens on a second port, too, in the same portal
	// group.
	Second bool
	// User and Secret for CHAP, if User isn't empty.
	User, Secret string
	// OwnUser and OwnSecret are what the target proves itself with (mutual CHAP),
	// if OwnUser isn't empty.
	OwnUser, OwnSecret string
	// BlockSize is 512 (default) or 4096.
	BlockSize int
	// QueueDepth limits commands in flight of a session (1 to 255). Default: 64.
	QueueDepth int

	secondPort int // a restarted target keeps it
}

// Target is a running target.
type Target struct {
	cfg    Config
	what   program
	portal string
	cmd    *exec.Cmd
	done   chan struct{} // the process ended
	once   sync.Once
}

// Find returns the path of istgt, or ErrMissing.
func Find() (string, error) {
	for _, p := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
		f := filepath.Join(p, "istgt")
		if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return f, nil
		}
	}
	return "", ErrMissing
}

// Start runs istgt and returns when it lets initiators log in. When this
// process dies, istgt does, too. Cancelling ctx stops the start only; Stop or
// Kill ends the target.
func Start(ctx context.Context, cfg Config) (*Target, error) {
	bin, err := Find()
	if err != nil {
		return nil, err
	}
	return startAny(ctx, program{
		name: "istgt", target: name, lun: 0,
		command: func(cfg Config) (*exec.Cmd, error) {
			conf, err := cfg.write()
			return exec.Command(bin, "-D", "-c", conf), err
		},
	}, cfg)
}

// program is one of the targets.
type program struct {
	name    string
	target  string // its iSCSI name
	lun     int
	command func(Config) (*exec.Cmd, error)
	// set tells the running program what to serve, if its command line doesn't.
	set func(context.Context, Config) error
}

func startAny(ctx context.Context, p program, cfg Config) (*Target, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	// A port that was free a moment ago can be taken: try others then.
	for try := 0; ; try++ {
		t, err := start(ctx, p, cfg)
		if err == nil || cfg.Port != 0 || try == 3 || ctx.Err() != nil {
			return t, err
		}
	}
}

func start(ctx context.Context, p program, cfg Config) (*Target, error) {
	ports := []*int{&cfg.Port}
	if cfg.Second {
		ports = append(ports, &cfg.secondPort)
	}
	var held []net.Listener
	var err error
	for _, port := range ports {
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(cfg.Address, strconv.Itoa(*port))); err != nil {
			err = fmt.Errorf("%s can't listen: %w", p.name, err)
			break
		}
		held = append(held, l)
		*port = l.Addr().(*net.TCPAddr).Port
	}
	for _, l := range held {
		l.Close()
	}
	if err != nil {
		return nil, err
	}
	return launch(ctx, p, cfg)
}

// launch runs the program on the ports that were found free.
func launch(ctx context.Context, p program, cfg Config) (*Target, error) {
	cmd, err := p.command(cfg)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(cfg.Dir, "target.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	t := &Target{cfg: cfg, what: p, portal: net.JoinHostPort(cfg.Address, strconv.Itoa(cfg.Port)), cmd: cmd, done: make(chan struct{})}
	t.cmd.Stdout, t.cmd.Stderr = log, log
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := t.run(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	err = t.ready(ctx)
	if err == nil && p.set != nil {
		err = p.set(ctx, cfg)
	}
	if err != nil {
		t.Kill()
		return nil, err
	}
	return t, nil
}

func (c Config) complete() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("a target needs a directory for its configuration")
	}
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return c, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return c, err
	}
	if c.File == "" {
		c.File = filepath.Join(c.Dir, "volume.img")
	}
	if c.File, err = filepath.Abs(c.File); err != nil {
		return c, err
	}
	if c.Address == "" {
		c.Address = "127.0.0.1"
	}
	if c.BlockSize == 0 {
		c.BlockSize = 512
	}
	if c.QueueDepth == 0 {
		c.QueueDepth = 64
	}
	if c.User != "" && (len(c.Secret) < 12 || len(c.Secret) > 16) {
		return c, errors.New("the volume's CHAP password must have 12 to 16 characters")
	}
	if c.OwnUser != "" && (c.User == "" || len(c.OwnSecret) < 12 || len(c.OwnSecret) > 16) {
		return c, errors.New("mutual CHAP needs a user for initiators, and a password of 12 to 16 characters for the target")
	}
	for _, s := range []string{c.Dir, c.File, c.User, c.Secret, c.OwnUser, c.OwnSecret} {
		if strings.ContainsAny(s, "\"\n\\ ") {
			return c, fmt.Errorf("a target's configuration can't hold %q (quote, blank or backslash)", s)
		}
	}
	f, err := os.OpenFile(c.File, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return c, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return c, err
	}
	if c.Size == 0 {
		c.Size = st.Size()
	}
	if c.Size < 1<<20 || c.Size%(1<<20) != 0 {
		return c, fmt.Errorf("volume %s has %d bytes; expected a multiple of 1 MiB", c.File, c.Size)
	}
	if st.Size() < c.Size {
		err = f.Truncate(c.Size)
	}
	return c, err
}

// run starts the process. Pdeathsig follows the thread that forked, so that
// thread is kept until the process ends.
func (t *Target) run() error {
	started := make(chan error, 1)
	go func() {
		lockThread(func() {
			err := t.cmd.Start()
			started <- err
			if err == nil {
				_ = t.cmd.Wait() // how it ended is in its log
				close(t.done)
			}
		})
	}()
	return <-started
}

// ready waits until it takes connections.
func (t *Target) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.portal)
		if err == nil {
			return c.Close()
		}
		select {
		case <-t.done:
			return fmt.Errorf("%s ended at once: %s", t.what.name, t.lastLog())
		case <-ctx.Done():
			return fmt.Errorf("%s doesn't listen on %s: %s", t.what.name, t.portal, t.lastLog())
		case <-tick.C:
		}
	}
}

// lastLog is the end of the program's log, on one line.
func (t *Target) lastLog() string {
	b, err := os.ReadFile(filepath.Join(t.cfg.Dir, "target.log"))
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b[max(0, len(b)-300):])
	return strings.ReplaceAll(string(b), "\n", "; ")
}

// Portal is host:port to log in to.
func (t *Target) Portal() string { return t.portal }

// SecondPortal is the host:port of Config.Second.
func (t *Target) SecondPortal() string {
	return net.JoinHostPort(t.cfg.Address, strconv.Itoa(t.cfg.secondPort))
}

// IQN is the target's name.
func (t *Target) IQN() string { return t.what.target }

// LUN is the volume's logical unit number.
func (t *Target) LUN() int { return t.what.lun }

// Port is the port it listens on.
func (t *Target) Port() int { return t.cfg.Port }

// Done is closed when the process has ended.
func (t *Target) Done() <-chan struct{} { return t.done }

// Log writes the program's own messages to w.
func (t *Target) Log(w io.Writer) error {
	f, err := os.Open(filepath.Join(t.cfg.Dir, "target.log"))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// Stop asks the program to end, and ends it by force after five seconds.
func (t *Target) Stop() {
	t.once.Do(func() {
		_ = t.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.NewTimer(5 * time.Second)
		defer timer.Stop()
		select {
		case <-t.done:
		case <-timer.C:
			_ = t.cmd.Process.Kill()
			<-t.done
		}
	})
}

// Kill ends it without warning, as a power cut would; what it has written is
// in the file.
func (t *Target) Kill() {
	t.once.Do(func() {
		_ = t.cmd.Process.Kill()
		<-t.done
	})
}

// Restart starts a killed or stopped target again, on the same port.
func (t *Target) Restart(ctx context.Context) (*Target, error) {
	t.Kill()
	return startAny(ctx, t.what, t.cfg)
}
