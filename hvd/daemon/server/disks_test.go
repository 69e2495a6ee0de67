package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/duet-ft/duet/hvd/api"
)

// The disks of a fake: VM db has one, root, whose content is what was imported last.
func (f *fake) Volume(context.Context) (api.Report, error) {
	return api.Report{Rows: []api.ReportRow{{Name: "portal", Value: "here"}}, Verdict: "fine", OK: true}, nil
}

func (f *fake) Disks(context.Context) ([]api.Disk, error) { return f.disks, nil }

func (f *fake) disk(vm, disk, doing string) (api.Disk, error) {
	if vm != "db" || disk != "root" {
		return api.Disk{}, api.Errorf(http.StatusNotFound, "VM %s has no disk %s", vm, disk)
	}
	return api.Disk{VM: vm, Name: disk, Doing: doing}, nil
}

func (f *fake) AddDisk(_ context.Context, vm, disk string, n uint64) (api.Disk, error) {
	return f.disk(vm, disk, fmt.Sprint("add ", n))
}

func (f *fake) DeleteDisk(_ context.Context, vm, disk string) error {
	_, err := f.disk(vm, disk, "")
	return err
}

func (f *fake) GrowDisk(_ context.Context, vm, disk string, n uint64) (api.Disk, error) {
	return f.disk(vm, disk, fmt.Sprint("grow ", n))
}

func (f *fake) CopyDisk(_ context.Context, vm, disk string, to api.DiskName) (api.Disk, error) {
	return f.disk(vm, disk, "copy "+to.VM+" "+to.Disk)
}

func (f *fake) ImportDisk(_ context.Context, vm, disk string, image io.Reader) (api.Disk, error) {
	d, err := f.disk(vm, disk, "")
	if err != nil {
		return d, err
	}
	content, err := io.ReadAll(image)
	if err == nil {
		f.content = content
	}
	f.imported <- err
	return d, err
}

func (f *fake) ExportDisk(_ context.Context, vm, disk string, size func(n int64), w io.Writer) error {
	if _, err := f.disk(vm, disk, ""); err != nil {
		return err
	}
	size(int64(len(f.content)))
	half := f.content[:len(f.content)/2]
	if _, err := w.Write(half); err != nil || f.cut {
		return errors.Join(err, errors.New("the volume is gone"))
	}
	_, err := w.Write(f.content[len(half):])
	return err
}

// TestDisks sends images larger than any other body, gets them back, and breaks both off.
func TestDisks(t *testing.T) {
	f := &fake{imported: make(chan error, 4)}
	addr, key := serve(t, f, token)
	c := api.Dial(api.Config{Address: addr, Token: token, Fingerprint: api.Fingerprint(public(key))})
	defer c.Close()
	ctx := deadline(t)
	if r, err := c.Volume(ctx); err != nil || !r.OK || len(r.Rows) != 1 {
		t.Errorf("volume: %+v, %v", r, err)
	}
	if list, err := c.Disks(ctx); err != nil || len(list) != 0 {
		t.Errorf("no disks: %+v, %v", list, err)
	}
	for want, ask := range map[string]func() (api.Disk, error){
		"add 4096":     func() (api.Disk, error) { return c.AddDisk(ctx, "db", "root", 4096) },
		"grow 8192":    func() (api.Disk, error) { return c.GrowDisk(ctx, "db", "root", 8192) },
		"copy web new": func() (api.Disk, error) { return c.CopyDisk(ctx, "db", "root", api.DiskName{VM: "web", Disk: "new"}) },
	} {
		if d, err := ask(); err != nil || d.Doing != want || d.Name != "root" {
			t.Errorf("%s: %+v, %v", want, d, err)
		}
	}
	image := bytes.Repeat([]byte("image "), 1<<20)
	if err := c.ImportDisk(ctx, "db", "root", bytes.NewReader(image)); err != nil || <-f.imported != nil || !bytes.Equal(f.content, image) {
		t.Errorf("import: %v, %d bytes", err, len(f.content))
	}
	export := func() ([]byte, error) {
		r, n, err := c.ExportDisk(ctx, "db", "root")
		if err != nil {
			return nil, err
		}
		defer r.Close()
		if n != int64(len(image)) {
			t.Errorf("export says %d bytes", n)
		}
		return io.ReadAll(r)
	}
	if got, err := export(); err != nil || !bytes.Equal(got, image) {
		t.Errorf("export: %v, %d bytes", err, len(got))
	}
	f.cut = true
	if got, err := export(); err == nil {
		t.Errorf("an export that broke off: no error after %d bytes", len(got))
	}
	broken := io.MultiReader(bytes.NewReader(image), iotest.ErrReader(errors.New("file is gone")))
	if err := c.ImportDisk(ctx, "db", "root", broken); err == nil {
		t.Error("an import that broke off: no error")
	}
	select {
	case err := <-f.imported:
		if err == nil {
			t.Error("an import that broke off has a proper end for the host")
		}
	case <-ctx.Done():
		t.Error("the host never learns that the import broke off")
	}
	read := false
	refused := c.ImportDisk(ctx, "db", "other", readerFunc(func(p []byte) (int, error) { read = true; return len(p), nil }))
	if refused == nil || !strings.Contains(refused.Error(), "has no disk") || read {
		t.Errorf("a refused import: %v, image read: %t", refused, read)
	}
	if err := c.DeleteDisk(ctx, "db", "root"); err != nil {
		t.Error(err)
	}
	if err := c.DeleteDisk(ctx, "db", "other"); err == nil {
		t.Error("a disk that isn't there was deleted")
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
