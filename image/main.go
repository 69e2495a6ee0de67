// Command image builds what is flashed.
//
//	go run ./image build [-o FILE [-perm DIR]] [-v]
//	go run ./image flash [-image FILE] [-yes] DEVICE
//	go run ./image key [-keys DIR] [-serial N] root|release
//	go run ./image bundle [-keys DIR] [-o FILE | -check FILE]
//	go run ./image perm -portal ADDRESS -target NAME [-lun N] [-user NAME -secret SECRET] DIR
//	go run ./image packages
//	go run ./image replay [-to N] [-core FILE] [-console] [-gdb PORT] RECORDING
//
// Build packs the host's disk image as config.json says, from the cache if nothing has changed, and prints where it is
// and its hash; -perm puts the files of a directory on the image's /perm, which is empty else and made by the host's
// first boot. Flash writes it to a USB stick or disk and reads it back. Bundle makes a signed update of it, with the keys
// that key makes. Perm makes two such directories, for the hosts of a pair. Packages installs the Debian packages that
// tests and demo need and that are missing; a user who isn't root is told how. Replay executes a recording in a host that
// QEMU emulates.
//
// The work is done in image/disk, image/flash, image/lab and image/nested; it also imports appliance/bundle,
// appliance/release, ftlink/wire, hvd/hostcfg, hvd/hostkey and hvd/recording.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/duet-ft/duet/image/disk"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/sparse"
)

const usage = "usage: go run ./image build|flash|key|bundle|perm|packages|replay; COMMAND -h tells more"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	var err error
	switch {
	case slices.Contains([]string{"help", "-h", "-help", "--help"}, command):
		fmt.Println(usage)
	case command == "build":
		err = build(ctx, os.Args[2:])
	case command == "perm":
		err = perm(os.Args[2:])
	case command == "flash":
		err = flashDevice(ctx, os.Args[2:])
	case command == "bundle":
		err = makeBundle(ctx, os.Args[2:])
	case command == "key":
		err = key(os.Args[2:])
	case command == "packages" && len(os.Args) == 2:
		err = lab.Install(ctx, func(line string) { fmt.Println(line) })
	case command == "replay":
		err = replay(ctx, os.Args[2:])
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// parse reads a command's flags. Help goes to standard output, and a mistake is one line.
func parse(flags *flag.FlagSet, args []string) error {
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(os.Stdout)
		flags.Usage()
		return err
	}
	if err != nil {
		return fmt.Errorf("%s: %w; %s -h shows the flags", flags.Name(), err, flags.Name())
	}
	return nil
}

func build(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	out := flags.String("o", "", "also write the image to `FILE`")
	files := flags.String("perm", "", "put the files of `DIR` on the /perm of the file that -o names")
	verbose := flags.Bool("v", false, "show what the packer says")
	if err := parse(flags, args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("build: %.40q is no flag; build -h shows them", flags.Arg(0))
	case *files != "" && *out == "":
		return errors.New("build: -perm needs -o")
	}
	var onPerm map[string][]byte
	if *files != "" {
		var err error
		if onPerm, err = readFiles(*files); err != nil {
			return err
		}
	}
	var log io.Writer
	if *verbose {
		log = os.Stderr
	}
	start := time.Now()
	img, err := buildImage(ctx, log)
	if err != nil {
		return err
	}
	if *out != "" {
		copyTo := func() error { return sparse.Copy(*out, img.Path, 0o644) }
		if *files != "" {
			copyTo = func() error { return img.Copy(ctx, *out, onPerm) }
		}
		if err := copyTo(); err != nil {
			return err
		}
		img.Path = *out
	}
	hash, err := hashOf(img.Path)
	if err != nil {
		return err
	}
	how := "packed"
	if img.Cached {
		how = "unchanged, from the cache"
	}
	fmt.Printf("image     %s (%s, %.1f s)\n", img.Path, how, time.Since(start).Seconds())
	fmt.Printf("kernel    %s\n", img.Kernel)
	fmt.Printf("cmdline   %s\n", img.Cmdline)
	fmt.Printf("sha256    %x\n", hash)
	return nil
}

// hashOf is the SHA-256 of a file.
func hashOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// buildImage builds the image of the present sources; log gets what the packer says, or is nil.
func buildImage(ctx context.Context, log io.Writer) (*disk.Image, error) {
	b, err := disk.NewBuilder(".")
	if err != nil {
		return nil, err
	}
	b.Log = log
	return b.Build(ctx)
}
