package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

// checkVolume prints what the volume and its target are like. What keeps a pair from working is the error.
func checkVolume(ctx context.Context, e env) error {
	r, err := e.client.Volume(ctx)
	if err != nil {
		return err
	}
	err = table(e.out, func(w io.Writer) {
		for _, x := range r.Rows {
			value := api.OneLine(x.Value)
			if x.Trouble != "" {
				value += "\t! " + api.OneLine(x.Trouble)
			}
			fmt.Fprintf(w, "%s\t%s\n", api.OneLine(x.Name), value)
		}
	})
	if err == nil && !r.OK {
		err = errors.New(r.Verdict)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.out, api.OneLine(r.Verdict))
	return err
}

func showDisks(ctx context.Context, e env) error {
	list, err := e.client.Disks(ctx)
	if err != nil {
		return err
	}
	return table(e.out, func(w io.Writer) {
		fmt.Fprintln(w, "VM\tDISK\tSIZE\tSTATE\tERROR")
		for _, d := range list {
			if len(e.args) > 0 && d.VM != e.args[0] {
				continue
			}
			state := d.State
			if d.Doing != "" {
				state += fmt.Sprintf(", %s %.0f %%", d.Doing, d.Percent)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", api.OneLine(d.VM), api.OneLine(d.Name), sizeText(d.SizeBytes), api.OneLine(state), api.OneLine(d.Error))
		}
	})
}

// sizeText is a size as parseSize takes it, in the largest unit that it is a multiple of.
func sizeText(n uint64) string {
	for _, u := range []struct {
		name  string
		shift int
	}{{"T", 40}, {"G", 30}, {"M", 20}, {"K", 10}} {
		if n>>u.shift > 0 && n&(1<<u.shift-1) == 0 {
			return fmt.Sprintf("%d%s", n>>u.shift, u.name)
		}
	}
	return strconv.FormatUint(n, 10)
}

// parseSize takes a number of bytes, or of KiB to TiB with K, M, G or T behind it.
func parseSize(s string) (uint64, error) {
	shift := 0
	number := s
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
			shift, number = 10*(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || n == 0 || n<<shift>>shift != n {
		return 0, fmt.Errorf("%w: %.40q is not a size such as 512M or 20G", errUsage, s)
	}
	return n << shift, nil
}

// resize makes the command that gives a disk a size.
func resize(do func(c *api.Client, ctx context.Context, vm, disk string, n uint64) (api.Disk, error), done string) func(context.Context, env) error {
	return func(ctx context.Context, e env) error {
		n, err := parseSize(e.args[3])
		if err != nil {
			return err
		}
		d, err := do(e.client, ctx, e.args[1], e.args[2], n)
		if err != nil {
			return err
		}
		if d, err = settle(ctx, e, d); err != nil {
			return err
		}
		if d.SizeBytes != n {
			return fmt.Errorf("disk %s of VM %s has %s", d.Name, d.VM, sizeText(d.SizeBytes))
		}
		_, err = fmt.Fprintf(e.out, "disk %s of VM %s %s, %s\n", d.Name, d.VM, done, sizeText(n))
		return err
	}
}

func copyDisk(ctx context.Context, e env) error {
	to := api.DiskName{VM: e.args[3], Disk: e.args[4]}
	d, err := e.client.CopyDisk(ctx, e.args[1], e.args[2], to)
	if err != nil {
		return err
	}
	if _, err := settle(ctx, e, d); err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "disk %s of VM %s is a copy of disk %s of VM %s\n", to.Disk, to.VM, e.args[2], e.args[1])
	return err
}

// settleEvery is how often a disk is looked at while something is done to it.
const settleEvery = time.Second

// settle waits until nothing is done to a disk any more, and says how far it is.
func settle(ctx context.Context, e env, d api.Disk) (api.Disk, error) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for d.Doing != "" || d.State == "new" {
		if d.Error != "" && d.Doing == "" {
			break
		}
		if d.Doing != "" {
			fmt.Fprintf(e.notes, "%s disk %s of VM %s: %.0f %%\n", d.Doing, d.Name, d.VM, d.Percent)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return d, errors.New("the host goes on with it; duet disks shows how far it is")
		}
		list, err := e.client.Disks(ctx)
		if err != nil {
			return d, err
		}
		found := false
		for _, x := range list {
			if x.VM == d.VM && x.Name == d.Name {
				d, found = x, true
			}
		}
		if !found {
			return d, fmt.Errorf("disk %s of VM %s isn't there any more", d.Name, d.VM)
		}
	}
	if d.Error != "" {
		return d, errors.New(d.Error)
	}
	return d, nil
}

func deleteDisk(ctx context.Context, e env) error {
	if err := e.client.DeleteDisk(ctx, e.args[1], e.args[2]); err != nil {
		return err
	}
	_, err := fmt.Fprintf(e.out, "disk %s of VM %s is deleted\n", e.args[2], e.args[1])
	return err
}

// counter counts what is read, and tells how much that is.
type counter struct {
	io.Reader
	n, told int64
	notes   io.Writer
}

// tellEvery is after how many bytes progress is told.
const tellEvery = 256 << 20

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.n += int64(n); c.n-c.told >= tellEvery {
		c.told = c.n
		fmt.Fprintf(c.notes, "%d MiB\n", c.n>>20)
	}
	return n, err
}

func importDisk(ctx context.Context, e env) error {
	in := e.in
	if path := e.args[3]; path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	c := &counter{Reader: in, notes: e.notes}
	if err := e.client.ImportDisk(ctx, e.args[1], e.args[2], c); err != nil {
		return err
	}
	_, err := fmt.Fprintf(e.out, "disk %s of VM %s holds the image, %d bytes\n", e.args[2], e.args[1], c.n)
	return err
}

func exportDisk(ctx context.Context, e env) error {
	image, size, err := e.client.ExportDisk(ctx, e.args[1], e.args[2])
	if err != nil {
		return err
	}
	defer image.Close()
	c := &counter{Reader: image, notes: e.notes}
	path := e.args[3]
	if path == "-" {
		_, err := io.Copy(e.out, c)
		return broken(err, c.n, size)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = sparse(f, c)
	if err = errors.Join(broken(err, c.n, size), f.Close()); err != nil {
		_ = os.Remove(path) // half a disk is of no use
		return err
	}
	_, err = fmt.Fprintf(e.out, "%s is disk %s of VM %s, %d bytes\n", path, e.args[2], e.args[1], c.n)
	return err
}

// broken says how far an export came that wasn't complete.
func broken(err error, n, size int64) error {
	if err == nil && n == size {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the export broke off after %d of %d bytes: %w", n, size, err)
}

// hole is the unit in which zeros are left out of a file.
const hole = 64 << 10

// sparse copies into a new file, and leaves holes for zeros.
func sparse(f *os.File, from io.Reader) error {
	zero, buf := make([]byte, hole), make([]byte, hole)
	var at int64
	for {
		n, err := io.ReadFull(from, buf)
		if string(buf[:n]) != string(zero[:n]) {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return f.Truncate(at)
		case err != nil:
			return err
		}
	}
}
