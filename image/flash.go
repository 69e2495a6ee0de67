package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/duet-ft/duet/image/flash"
)

// flashDevice writes the image to a stick or disk, after a question.
func flashDevice(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("flash", flag.ContinueOnError)
	file := flags.String("image", "", "write `FILE` and not the image of the present sources")
	yes := flags.Bool("yes", false, "don't ask")
	if err := parse(flags, args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: go run ./image flash [-image FILE] [-yes] DEVICE")
	}
	system, err := flash.ThisSystem()
	if err != nil {
		return err
	}
	// What can't be written is told before minutes of building.
	if _, err := system.Probe(flags.Arg(0), 0); err != nil {
		return err
	}
	if *file == "" {
		img, err := buildImage(ctx, nil)
		if err != nil {
			return err
		}
		*file = img.Path
	}
	image, err := os.Open(*file)
	if err != nil {
		return err
	}
	defer image.Close()
	info, err := image.Stat()
	if err != nil {
		return err
	}
	target, err := system.Probe(flags.Arg(0), info.Size())
	if err != nil {
		return err
	}
	if !*yes {
		if err := confirm(os.Stdin, os.Stdout, target); err != nil {
			return err
		}
	}
	device, err := flash.Open(target.Path)
	if err != nil {
		return err
	}
	var id [4]byte
	rand.Read(id[:])
	start := time.Now()
	err = flash.Write(ctx, device, target.Size, flash.Image{
		ReaderAt: image, Size: info.Size(), Disk: binary.LittleEndian.Uint32(id[:]),
	}, progressLine(os.Stdout, start))
	fmt.Println()
	if err := errors.Join(err, device.Close()); err != nil {
		return fmt.Errorf("%s: %w", target.Path, err)
	}
	fmt.Printf("%s is written and reads back right (%.0f s). The host that boots from it shows its name and password on its screen.\n",
		target.Path, time.Since(start).Seconds())
	return nil
}

// confirm has the user type the target's name.
func confirm(in io.Reader, out io.Writer, t flash.Target) error {
	fmt.Fprintf(out, "All that is on %s will be erased. Type %s to go on: ", t, t.Name)
	answer, err := bufio.NewReader(io.LimitReader(in, 100)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != t.Name {
		return fmt.Errorf("nothing is written: the answer wasn't %s", t.Name)
	}
	return nil
}

// progressLine shows how far it is, at most ten times a second.
func progressLine(out io.Writer, start time.Time) flash.Progress {
	var shown time.Time
	return func(done, total int64) {
		now := time.Now()
		if done < total && now.Sub(shown) < 100*time.Millisecond {
			return
		}
		shown = now
		what := "writing"
		if done > total/2 {
			what = "reading back"
		}
		fmt.Fprintf(out, "\r%-12s %3d %%  %5.0f MB/s ", what, done*100/total, float64(done)/1e6/max(now.Sub(start).Seconds(), 0.001))
	}
}
