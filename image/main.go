// Command image builds what is flashed.
//
//	go run ./image build [-o FILE] [-v]
//
// It packs the host's disk image as config.json says, from the cache if nothing has changed, and prints where it is
// and the password of its web page. The work is done in image/disk.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/duet-ft/duet/image/disk"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) < 2 || os.Args[1] != "build" {
		fmt.Fprintln(os.Stderr, "usage: go run ./image build [-o FILE] [-v]")
		os.Exit(2)
	}
	if err := build(ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ExitOnError)
	out := flags.String("o", "", "also write the image to `FILE`")
	verbose := flags.Bool("v", false, "show what the packer says")
	if err := flags.Parse(args); err != nil {
		return err
	}
	b, err := disk.NewBuilder(".")
	if err != nil {
		return err
	}
	if *verbose {
		b.Log = os.Stderr
	}
	start := time.Now()
	img, err := b.Build(ctx)
	if err != nil {
		return err
	}
	if *out != "" {
		if err := img.Copy(ctx, *out, nil); err != nil {
			return err
		}
		img.Path = *out
	}
	how := "packed"
	if img.Cached {
		how = "unchanged, from the cache"
	}
	fmt.Printf("image     %s (%s, %.1f s)\n", img.Path, how, time.Since(start).Seconds())
	fmt.Printf("kernel    %s\n", img.Kernel)
	fmt.Printf("cmdline   %s\n", img.Cmdline)
	fmt.Printf("web page  http://gokrazy:%s@%s/\n", img.Password, img.Hostname)
	return nil
}
