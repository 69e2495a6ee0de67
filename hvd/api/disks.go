package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Volume returns what the volume and its target are like.
func (c *Client) Volume(ctx context.Context) (r Report, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/volume", nil, &r)
}

// Disks returns all disks.
func (c *Client) Disks(ctx context.Context) (list []Disk, err error) {
	return list, c.call(ctx, http.MethodGet, "/v1/disks", nil, &list)
}

func diskPath(vm, disk string) string { return vmPath(vm) + "/disks/" + url.PathEscape(disk) }

// post sends a value as JSON.
func (c *Client) post(ctx context.Context, path string, v any) (d Disk, err error) {
	body, err := json.Marshal(v)
	if err != nil {
		return d, fmt.Errorf("request: %w", err)
	}
	return d, c.call(ctx, http.MethodPost, path, body, &d)
}

// AddDisk adds a disk of n bytes to a VM that is stopped. It may be zeroed still when this returns.
func (c *Client) AddDisk(ctx context.Context, vm, disk string, n uint64) (Disk, error) {
	return c.post(ctx, diskPath(vm, disk), DiskSize{n})
}

// GrowDisk makes a disk of a VM that is stopped larger: n bytes in all. It may be under way still when this returns.
func (c *Client) GrowDisk(ctx context.Context, vm, disk string, n uint64) (Disk, error) {
	return c.post(ctx, diskPath(vm, disk)+"/grow", DiskSize{n})
}

// CopyDisk copies a disk onto another one; both VMs are stopped. It may be under way still when this returns.
func (c *Client) CopyDisk(ctx context.Context, vm, disk string, to DiskName) (Disk, error) {
	return c.post(ctx, diskPath(vm, disk)+"/copy", to)
}

// DeleteDisk removes a disk of a VM that is stopped.
func (c *Client) DeleteDisk(ctx context.Context, vm, disk string) error {
	return c.call(ctx, http.MethodDelete, diskPath(vm, disk), nil, nil)
}

// ImportDisk makes a raw image, up to the end of the stream, the content of a disk of a VM that is stopped.
func (c *Client) ImportDisk(ctx context.Context, vm, disk string, image io.Reader) error {
	r, err := c.request(ctx, http.MethodPut, diskPath(vm, disk)+"/content", nil)
	if err != nil {
		return err
	}
	r.Body, r.ContentLength, r.GetBody = io.NopCloser(image), -1, nil
	r.Header.Set("Content-Type", "application/octet-stream")
	// What the host refuses it refuses before it takes the image.
	r.Header.Set("Expect", "100-continue")
	a, err := c.http.Do(r)
	if err != nil {
		return c.failure(err)
	}
	defer a.Body.Close()
	if a.StatusCode/100 != 2 {
		return ReadError(a)
	}
	return nil
}

// ExportDisk returns the content of a disk of a VM that is stopped, and its size in bytes. ctx bounds the stream's life.
func (c *Client) ExportDisk(ctx context.Context, vm, disk string) (io.ReadCloser, int64, error) {
	r, err := c.request(ctx, http.MethodGet, diskPath(vm, disk)+"/content", nil)
	if err != nil {
		return nil, 0, err
	}
	a, err := c.http.Do(r)
	if err != nil {
		return nil, 0, c.failure(err)
	}
	if a.StatusCode != http.StatusOK {
		defer a.Body.Close()
		return nil, 0, ReadError(a)
	}
	return a.Body, a.ContentLength, nil
}
