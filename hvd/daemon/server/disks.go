package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

// Disks is the part of a Backend that is about the volume and its disks.
type Disks interface {
	Volume(ctx context.Context) (api.Report, error)
	Disks(ctx context.Context) ([]api.Disk, error)
	AddDisk(ctx context.Context, vm, disk string, n uint64) (api.Disk, error)
	DeleteDisk(ctx context.Context, vm, disk string) error
	GrowDisk(ctx context.Context, vm, disk string, n uint64) (api.Disk, error)
	CopyDisk(ctx context.Context, vm, disk string, to api.DiskName) (api.Disk, error)
	// ImportDisk makes a raw image, up to its end, a disk's content. ctx ends with the request.
	ImportDisk(ctx context.Context, vm, disk string, image io.Reader) (api.Disk, error)
	// ExportDisk writes a disk's content to w. size is called before, with its size in bytes.
	ExportDisk(ctx context.Context, vm, disk string, size func(n int64), w io.Writer) error
}

func (h *handler) volume(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
	defer cancel()
	report, err := h.b.Volume(ctx)
	answer(w, report, err)
}

func (h *handler) disks(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readLimit)
	defer cancel()
	list, err := h.b.Disks(ctx)
	if list == nil {
		list = []api.Disk{}
	}
	answer(w, list, err)
}

// asked decodes a request's JSON and passes it on with the disk that the path names.
func asked[T any](do func(ctx context.Context, vm, disk string, v T) (api.Disk, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
		defer cancel()
		var v T
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			api.WriteError(w, api.Errorf(http.StatusBadRequest, "request: %v", err))
			return
		}
		d, err := do(ctx, r.PathValue("name"), r.PathValue("disk"), v)
		answer(w, d, err)
	}
}

func (h *handler) deleteDisk(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
	defer cancel()
	answer(w, struct{}{}, h.b.DeleteDisk(ctx, r.PathValue("name"), r.PathValue("disk")))
}

// slowReader and slowWriter are streams that may take long in all, and no longer than their timeout for a piece.
type slowReader struct {
	r       io.Reader
	control *http.ResponseController
}

func (s slowReader) Read(p []byte) (int, error) {
	if err := s.control.SetReadDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

type slowWriter struct {
	w       io.Writer
	control *http.ResponseController
}

func (s slowWriter) Write(p []byte) (int, error) {
	if err := s.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return s.w.Write(p)
}

// importDisk takes an image of any size.
func (h *handler) importDisk(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	// Until the end of the image is on the volume, and then for the answer.
	if err := control.SetWriteDeadline(time.Time{}); err != nil {
		answer(w, nil, err)
		return
	}
	d, err := h.b.ImportDisk(r.Context(), r.PathValue("name"), r.PathValue("disk"), slowReader{r.Body, control})
	if e := control.SetWriteDeadline(time.Now().Add(headerTimeout)); err == nil {
		err = e
	}
	answer(w, d, err)
}

// exportDisk sends a disk. What breaks off is shorter than it said that it would be.
func (h *handler) exportDisk(w http.ResponseWriter, r *http.Request) {
	begun := false
	err := h.b.ExportDisk(r.Context(), r.PathValue("name"), r.PathValue("disk"), func(n int64) {
		begun = true
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		w.Header().Set("X-Content-Type-Options", "nosniff")
	}, slowWriter{w, http.NewResponseController(w)})
	switch {
	case err != nil && begun:
		panic(http.ErrAbortHandler)
	case err != nil:
		answer(w, nil, err)
	}
}
