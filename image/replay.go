package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/duet-ft/duet/hvd/recording"
	"github.com/duet-ft/duet/image/nested"
)

const (
	// replayRoomMiB is what a host needs beside the guest's memory: itself, its initrd and the log.
	replayRoomMiB = 1024
	// debugPort is where hvd waits for a debugger, in the host.
	debugPort = 1234
)

// replay executes a recording in a host that QEMU emulates, with Duet's kernel: hvd replay for machines that have
// none.
func replay(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("replay", flag.ContinueOnError)
	to := flags.Uint64("to", 0, "stop behind exit `N`")
	core := flags.String("core", "", "write an ELF core to `FILE`")
	console := flags.Bool("console", false, "print what the guest prints")
	port := flags.Int("gdb", 0, "wait for gdb on `PORT` of 127.0.0.1")
	kernel := flags.String("kernel", "image/kernel/vmlinuz", "Duet's kernel")
	if err := parse(flags, args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("usage: go run ./image replay [-to N] [-core FILE] [-console] [-gdb PORT] RECORDING")
	}
	dir, err := os.MkdirTemp("", "duet-replay-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	memory, disk, err := diskOf(dir, flags.Arg(0))
	if err != nil {
		return err
	}
	cfg := nested.Config{
		Kernel: *kernel, Package: "github.com/duet-ft/duet/hvd", Program: true, Args: []string{"replay", "/dev/vda"},
		Disks: []string{disk}, MemoryMiB: int(memory>>20) + replayRoomMiB, Log: os.Stdout,
	}
	if *to > 0 {
		cfg.Args = append(cfg.Args, "--to", strconv.FormatUint(*to, 10))
	}
	if *console {
		cfg.Args = append(cfg.Args, "--console")
	}
	if *port > 0 {
		cfg.Args = append(cfg.Args, "--gdb", fmt.Sprintf(":%d", debugPort))
		cfg.Forward = map[int]int{*port: debugPort}
		fmt.Printf("once it waits, in gdb: target remote 127.0.0.1:%d\n", *port)
	}
	if *core != "" {
		f, err := os.Create(*core)
		if err != nil {
			return err
		}
		// Room for the core's headers beside all memory.
		if err := f.Truncate(int64(memory) + 64<<20); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		cfg.Args = append(cfg.Args, "--core", "/dev/vdb")
		cfg.Kept = []string{*core}
	}
	return nested.Run(ctx, dir, cfg)
}

// diskOf makes a disk of a recording, which has whole sectors, and says how much memory its guest has.
func diskOf(dir, path string) (memory uint64, disk string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	r, err := recording.NewReader(f)
	if err != nil {
		return 0, "", fmt.Errorf("%s: %w", path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return 0, "", err
	}
	if info.Size()%512 == 0 {
		return r.Head().Memory, path, nil
	}
	disk = filepath.Join(dir, "recording")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, "", err
	}
	b = append(b, make([]byte, 512-len(b)%512)...)
	return r.Head().Memory, disk, os.WriteFile(disk, b, 0o600)
}
