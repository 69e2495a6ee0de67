// Package target runs Debian's istgt, a user-space iSCSI target, on a file:
// the volume of tests and of the demonstration.
//
// # Place
//
// Tests of hvd/iscsi, hvd/volume and the nested tests start it; it imports
// nothing of ours. It needs no root: all its files are in one directory, and
// the port is an ordinary one.
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
	// User and Secret for CHAP, if User isn't empty.
	User, Secret string
	// BlockSize is 512 (default) or 4096.
	BlockSize int
	// QueueDepth limits commands in flight of a session (1 to 255). Default: 64.
	QueueDepth int
}

// Target is a running istgt.
type Target struct {
	cfg    Config
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
	if cfg, err = cfg.complete(); err != nil {
		return nil, err
	}
	// A port that was free a moment ago can be taken: try others then.
	for try := 0; ; try++ {
		t, err := start(ctx, bin, cfg)
		if err == nil || cfg.Port != 0 || try == 3 || ctx.Err() != nil {
			return t, err
		}
	}
}

func start(ctx context.Context, bin string, cfg Config) (*Target, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(cfg.Address, strconv.Itoa(cfg.Port)))
	if err != nil {
		return nil, fmt.Errorf("istgt can't listen: %w", err)
	}
	cfg.Port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	conf, err := cfg.write()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(cfg.Dir, "istgt.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	t := &Target{cfg: cfg, portal: net.JoinHostPort(cfg.Address, strconv.Itoa(cfg.Port)), done: make(chan struct{})}
	t.cmd = exec.Command(bin, "-D", "-c", conf)
	t.cmd.Stdout, t.cmd.Stderr = log, log
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := t.run(); err != nil {
		return nil, fmt.Errorf("istgt: %w", err)
	}
	if err := t.ready(ctx); err != nil {
		t.Kill()
		return nil, err
	}
	return t, nil
}

func (c Config) complete() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("istgt needs a directory for its configuration")
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
	for _, s := range []string{c.Dir, c.File, c.User, c.Secret} {
		if strings.ContainsAny(s, "\"\n\\ ") {
			return c, fmt.Errorf("istgt's configuration can't hold %q (quote, blank or backslash)", s)
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

// ready waits until istgt takes connections.
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
			return fmt.Errorf("istgt ended at once: %s", t.lastLog())
		case <-ctx.Done():
			return fmt.Errorf("istgt doesn't listen on %s: %s", t.portal, t.lastLog())
		case <-tick.C:
		}
	}
}

// lastLog is the end of istgt's log, on one line.
func (t *Target) lastLog() string {
	b, err := os.ReadFile(filepath.Join(t.cfg.Dir, "istgt.log"))
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b[max(0, len(b)-300):])
	return strings.ReplaceAll(string(b), "\n", "; ")
}

// Portal is host:port to log in to.
func (t *Target) Portal() string { return t.portal }

// IQN is the target's name.
func (t *Target) IQN() string { return name }

// Port is the port it listens on.
func (t *Target) Port() int { return t.cfg.Port }

// Done is closed when the process has ended.
func (t *Target) Done() <-chan struct{} { return t.done }

// Log writes istgt's own messages to w.
func (t *Target) Log(w io.Writer) error {
	f, err := os.Open(filepath.Join(t.cfg.Dir, "istgt.log"))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// Stop asks istgt to end, and ends it by force after five seconds.
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

// Kill ends istgt without warning, as a power cut would; what it has written is
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
	return Start(ctx, t.cfg)
}
