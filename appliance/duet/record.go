package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/recording"
)

// recordMargin is how long after its time a recording may take to arrive, its state transfer included.
const recordMargin = 10 * time.Minute

// record writes a recording of a VM's next time to a file. It is read on the way, so that a broken one is known at once.
func record(ctx context.Context, e env) error {
	f := flag.NewFlagSet("vm record", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	path := f.String("out", "", "")
	length := f.Duration("for", time.Minute, "")
	name := e.args[1]
	if err := f.Parse(e.args[2:]); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if *path == "" || f.NArg() > 0 || *length <= 0 || *length > api.MaxRecording {
		return fmt.Errorf("%w: vm record NAME --out FILE, and --for up to %v", errUsage, api.MaxRecording)
	}
	ctx, cancel := context.WithTimeout(ctx, *length+recordMargin)
	defer cancel()
	stream, err := e.client.Record(ctx, name, *length)
	if err != nil {
		return err
	}
	defer stream.Close()
	file, err := os.OpenFile(*path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // it holds the guest's memory
	if err != nil {
		return err
	}
	defer file.Close()
	out := bufio.NewWriterSize(file, 1<<20)
	r, end, err := follow(io.TeeReader(stream, out))
	if err := errors.Join(out.Flush(), file.Close()); err != nil {
		return err
	}
	if r == nil {
		return fmt.Errorf("VM %s: %w", name, err)
	}
	size := int64(0)
	if info, err := os.Stat(*path); err == nil {
		size = info.Size()
	}
	switch {
	case errors.Is(err, recording.ErrUnfinished):
		return fmt.Errorf("VM %s: %w; %s is of no use", name, err, *path)
	case err != nil:
		if ctx.Err() != nil {
			err = errors.New("it was broken off")
		}
		return fmt.Errorf("%s has %d bytes of VM %s and no end: %w; what is there can be replayed if its state is complete", *path, size, name, err)
	}
	_, err = fmt.Fprintf(e.out, "%s has %d bytes of VM %s, up to position %d: %s\n", *path, size, name, end.Position, api.OneLine(end.Why))
	return err
}

// follow reads a recording to its end. The reader is nil if there is none.
func follow(in io.Reader) (*recording.Reader, *recording.End, error) {
	r, err := recording.NewReader(in)
	if err != nil {
		return nil, nil, err
	}
	if _, err := r.State(func(recording.Ref, recording.Block) error { return nil }); err != nil {
		return r, nil, err
	}
	for {
		if _, _, _, err := r.Log(); errors.Is(err, io.EOF) {
			return r, r.End(), nil
		} else if err != nil {
			return r, nil, err
		}
	}
}
