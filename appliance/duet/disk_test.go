package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/api"
)

// The disks of a host: root of VM db, which is imported to and exported from. Disk data is being zeroed at the first look.

func (h *host) Volume(context.Context) (api.Report, error) {
	return api.Report{
		Rows: []api.ReportRow{
			{Name: "portal", Value: "192.0.2.5:3260"},
			{Name: "COMPARE AND WRITE", Value: "no", Trouble: "without it nothing decides\x1b"},
		},
		Verdict: "no pair can work with this volume as it is: without it nothing decides",
	}, nil
}

func (h *host) Disks(context.Context) ([]api.Disk, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.looks++
	data := api.Disk{VM: "db", Name: "data", SizeBytes: 3 << 20, State: "new", Doing: "zeroing", Percent: 41.6}
	if h.looks > 2 || len(h.asked) == 0 && h.looks > 1 {
		data.State, data.Doing = "ready", ""
	}
	return []api.Disk{
		{VM: "db", Name: "root", SizeBytes: 20 << 30, State: "ready"},
		data,
		{VM: "web", Name: "root", SizeBytes: 4097, State: "partial", Error: "the image broke off"},
	}, nil
}

func (h *host) AddDisk(_ context.Context, vm, disk string, n uint64) (api.Disk, error) {
	h.note(fmt.Sprintf("add disk %s of %s, %d bytes", disk, vm, n))
	return api.Disk{VM: vm, Name: disk, SizeBytes: n, State: "new"}, nil
}

func (h *host) DeleteDisk(_ context.Context, vm, disk string) error {
	h.note("delete disk " + disk + " of " + vm)
	return nil
}

func (h *host) GrowDisk(_ context.Context, vm, disk string, n uint64) (api.Disk, error) {
	h.note(fmt.Sprintf("grow disk %s of %s to %d bytes", disk, vm, n))
	if vm == "web" {
		return api.Disk{}, api.Errorf(http.StatusConflict, "VM web isn't stopped: stop it first")
	}
	return api.Disk{VM: vm, Name: disk, SizeBytes: n, State: "ready"}, nil
}

func (h *host) CopyDisk(_ context.Context, vm, disk string, to api.DiskName) (api.Disk, error) {
	h.note(fmt.Sprintf("copy disk %s of %s to %s of %s", disk, vm, to.Disk, to.VM))
	return api.Disk{VM: to.VM, Name: to.Disk, State: "partial", Doing: "copying"}, nil
}

func (h *host) ImportDisk(_ context.Context, vm, disk string, image io.Reader) (api.Disk, error) {
	b, err := io.ReadAll(image)
	if err != nil {
		return api.Disk{}, err
	}
	h.note(fmt.Sprintf("import disk %s of %s: %q", disk, vm, b))
	return api.Disk{VM: vm, Name: disk, State: "ready"}, nil
}

func (h *host) ExportDisk(_ context.Context, vm, disk string, size func(n int64), w io.Writer) error {
	h.note("export disk " + disk + " of " + vm)
	if disk != "root" {
		return api.Errorf(http.StatusNotFound, "VM %s has no disk %s", vm, disk)
	}
	content := h.disk
	if content == nil {
		content = []byte("what the disk holds\n")
	}
	size(int64(len(content)))
	if h.cut {
		_, err := w.Write(content[:len(content)/2])
		return errors.Join(err, errors.New("the volume is gone"))
	}
	_, err := w.Write(content)
	return err
}

// TestExport writes a disk to a file with holes; one that breaks off leaves no file, and nothing is overwritten.
func TestExport(t *testing.T) {
	content := append(make([]byte, 1<<20), "end of the disk"...)
	h := &host{disk: content}
	s := serve(t, h)
	path := filepath.Join(t.TempDir(), "root.raw")
	export := func() error {
		return run(context.Background(), append(s.flags(), "disk", "export", "db", "root", path), nil, io.Discard, io.Discard)
	}
	if err := export(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file has %d bytes (%v)", len(got), err)
	}
	if err := export(); !errors.Is(err, os.ErrExist) {
		t.Errorf("an export over a file: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	h.cut = true
	h.disk = make([]byte, 8<<20)
	if err := export(); err == nil {
		t.Error("an export that broke off: no error")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an export that broke off leaves a file (%v)", err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]uint64{"4096": 4096, "1K": 1 << 10, "512M": 512 << 20, "20g": 20 << 30, "3T": 3 << 40} {
		if n, err := parseSize(text); err != nil || n != want {
			t.Errorf("%s: %d, %v", text, n, err)
		}
		if again, err := parseSize(sizeText(want)); err != nil || again != want {
			t.Errorf("%d as text is %s, which is %d, %v", want, sizeText(want), again, err)
		}
	}
	for _, text := range []string{"", "0", "G", "-1", "1.5G", "17179869184G", "20 G", "20GB", strings.Repeat("9", 40)} {
		if n, err := parseSize(text); !errors.Is(err, errUsage) {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}
