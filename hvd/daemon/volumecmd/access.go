package volumecmd

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
)

// access is how to reach a volume, as the flags say.
type access struct {
	file      string
	blockSize int
	cfg       hostcfg.Volume
}

// parse reads the flags, and returns what follows them. anyTarget means that a portal is asked for, and no volume.
func (a *access) parse(name string, args []string, anyTarget bool) ([]string, error) {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&a.file, "file", "", "")
	f.IntVar(&a.blockSize, "block-size", 512, "")
	f.StringVar(&a.cfg.Portal, "portal", "", "")
	f.StringVar(&a.cfg.Target, "target", "", "")
	f.IntVar(&a.cfg.LUN, "lun", 0, "")
	f.StringVar(&a.cfg.User, "user", "", "")
	f.StringVar(&a.cfg.Secret, "secret", os.Getenv("DUET_SECRET"), "")
	f.StringVar(&a.cfg.Portal2, "portal2", "", "")
	f.StringVar(&a.cfg.TargetUser, "target-user", "", "")
	f.StringVar(&a.cfg.TargetSecret, "target-secret", os.Getenv("DUET_TARGET_SECRET"), "")
	f.BoolVar(&a.cfg.Digests, "digests", false, "")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, ErrUsage
		}
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	switch {
	case a.file != "" && a.cfg.Portal != "":
		return nil, fmt.Errorf("%w: give either --file or --portal", ErrUsage)
	case anyTarget && (a.cfg.Portal == "" || a.cfg.Target != ""):
		return nil, fmt.Errorf("%w: which portal? Give --portal, and no --target", ErrUsage)
	case !anyTarget && a.file == "" && (a.cfg.Portal == "" || a.cfg.Target == ""):
		return nil, fmt.Errorf("%w: which volume? Give --portal and --target, or --file", ErrUsage)
	case a.cfg.LUN < 0:
		return nil, fmt.Errorf("%w: --lun %d", ErrUsage, a.cfg.LUN)
	}
	if a.cfg.User == "" {
		a.cfg.Secret = "" // the one of the environment isn't meant
	}
	if a.cfg.TargetUser == "" {
		a.cfg.TargetSecret = "" // likewise
	}
	return f.Args(), nil
}

// store is a volume that is open.
type store struct {
	volume.Blocks
	session *iscsi.Session // nil: a file
	file    *os.File
	joined  bool
	keeper  define.Keeper // who holds a VM
}

func (a *access) open(ctx context.Context, write bool) (*store, error) {
	if a.file != "" {
		mode := os.O_RDONLY
		if write {
			mode = os.O_RDWR
		}
		f, err := os.OpenFile(a.file, mode, 0)
		if err != nil {
			return nil, err
		}
		b, err := volume.NewFile(f, a.blockSize)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: %w", a.file, err)
		}
		return &store{Blocks: b, file: f, keeper: define.Keeper("file " + a.file)}, nil
	}
	cfg, err := a.session()
	if err != nil {
		return nil, err
	}
	s, err := iscsi.Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &store{Blocks: s, session: s, keeper: define.SessionKeeper(cfg.Initiator, cfg.ISID)}, nil
}

// session is how to log in. The ISID is of type random (RFC 7143, section 11.12.5), so that two runs don't end each
// other's session.
func (a *access) session() (iscsi.Config, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	isid := [6]byte{0x80}
	if _, err := rand.Read(isid[1:]); err != nil {
		return iscsi.Config{}, err
	}
	v := a.cfg
	v.Portal, v.Portal2 = withPort(v.Portal), withPort(v.Portal2)
	cfg := nexus.Config(v, nexus.Initiator(nexus.Tool+label(host)), isid)
	cfg.HeaderDigest, cfg.DataDigest = true, true
	return cfg, nil
}

// withPort adds iSCSI's port to an address that has none.
func withPort(s string) string {
	if _, _, err := net.SplitHostPort(s); err == nil || s == "" {
		return s
	}
	return net.JoinHostPort(strings.Trim(s, "[]"), fmt.Sprint(hostcfg.DefaultPort))
}

// discover lists the targets of a portal.
func (a *access) discover(ctx context.Context, out io.Writer) error {
	cfg, err := a.session()
	if err != nil {
		return err
	}
	list, err := iscsi.Discover(ctx, cfg)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("portal %s shows this initiator, %s, no target (check the target's list of allowed initiators)", cfg.Portal, cfg.Initiator)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TARGET\tPORTAL\tPORTAL GROUP")
	for _, t := range list {
		for _, p := range t.Portals {
			fmt.Fprintf(w, "%s\t%s\t%d\n", t.Target, p.Address, p.Group)
		}
	}
	return w.Flush()
}

// label makes a host's name fit for an iSCSI name (RFC 3722).
func label(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(s))
}

// join makes writing possible on a volume that is Duet's, where a reservation may keep all others out.
func (s *store) join(ctx context.Context) error {
	if s.session == nil {
		return nil
	}
	err := s.session.Join(ctx)
	if errors.Is(err, iscsi.ErrUnsupported) {
		return nil // then there is no reservation either
	}
	s.joined = err == nil
	return err
}

func (s *store) close(ctx context.Context) error {
	if s.session == nil {
		return s.file.Close()
	}
	var err error
	if s.joined {
		err = s.session.Leave(ctx)
	}
	return errors.Join(err, s.session.Close())
}
