package volumecmd

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

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

// parse reads the flags, and returns what follows them.
func (a *access) parse(name string, args []string) ([]string, error) {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&a.file, "file", "", "")
	f.IntVar(&a.blockSize, "block-size", 512, "")
	f.StringVar(&a.cfg.Portal, "portal", "", "")
	f.StringVar(&a.cfg.Target, "target", "", "")
	f.IntVar(&a.cfg.LUN, "lun", 0, "")
	f.StringVar(&a.cfg.User, "user", "", "")
	f.StringVar(&a.cfg.Secret, "secret", os.Getenv("DUET_SECRET"), "")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, ErrUsage
		}
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	switch {
	case a.file != "" && a.cfg.Portal != "":
		return nil, fmt.Errorf("%w: give either --file or --portal", ErrUsage)
	case a.file == "" && (a.cfg.Portal == "" || a.cfg.Target == ""):
		return nil, fmt.Errorf("%w: which volume? Give --portal and --target, or --file", ErrUsage)
	case a.cfg.LUN < 0:
		return nil, fmt.Errorf("%w: --lun %d", ErrUsage, a.cfg.LUN)
	}
	if a.cfg.User == "" {
		a.cfg.Secret = "" // the one of the environment isn't meant
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
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	cfg := iscsi.Config{
		Portal: a.cfg.Portal, Target: a.cfg.Target, LUN: uint64(a.cfg.LUN), User: a.cfg.User, Secret: a.cfg.Secret,
		Initiator: nexus.Initiator(nexus.Tool + label(host)), HeaderDigest: true, DataDigest: true,
	}
	// Of type random (RFC 7143, section 11.12.5), so that two runs don't end each other's session.
	if _, err := rand.Read(cfg.ISID[1:]); err != nil {
		return nil, err
	}
	cfg.ISID[0] = 0x80
	s, err := iscsi.Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &store{Blocks: s, session: s, keeper: define.SessionKeeper(cfg.Initiator, cfg.ISID)}, nil
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
