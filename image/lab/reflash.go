package lab

import (
	"context"
	"fmt"
	"maps"
)

// Reflash writes the image to the disk of a host that is off, with other files on /perm: it is another computer in the same
// place then.
func (h *Host) Reflash(ctx context.Context, perm map[string][]byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machine != nil {
		select {
		case <-h.machine.Done():
		default:
			return fmt.Errorf("host %s is on", h.cfg.Name)
		}
	}
	files := maps.Clone(perm)
	if files == nil {
		files = map[string][]byte{}
	}
	files[syslogTarget] = []byte(h.syslog.target())
	h.cfg.Perm = perm
	if err := h.lab.Image.Copy(ctx, h.disk, files); err != nil {
		return fmt.Errorf("disk of host %s: %w", h.cfg.Name, err)
	}
	return nil
}
