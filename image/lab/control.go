package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/duet-ft/duet/image/lab/qemu"
)

// Stop freezes the host's CPU; Cont lets it go on.
func (h *Host) Stop(ctx context.Context) error { return h.withMachine(ctx, (*qemu.Machine).Stop) }

// Cont undoes Stop.
func (h *Host) Cont(ctx context.Context) error { return h.withMachine(ctx, (*qemu.Machine).Cont) }

// Reset presses the host's reset button.
func (h *Host) Reset(ctx context.Context) error { return h.withMachine(ctx, (*qemu.Machine).Reset) }

func (h *Host) withMachine(ctx context.Context, do func(*qemu.Machine, context.Context) error) error {
	m := h.Machine()
	if m == nil {
		return fmt.Errorf("host %s is off", h.cfg.Name)
	}
	return do(m, ctx)
}

// Freeze stops the host's QEMU itself; its clock goes on. Thaw lets it go on.
func (h *Host) Freeze(ctx context.Context) error {
	return h.withMachine(ctx, func(m *qemu.Machine, _ context.Context) error { return m.Freeze() })
}

// Thaw undoes Freeze.
func (h *Host) Thaw(ctx context.Context) error {
	return h.withMachine(ctx, func(m *qemu.Machine, _ context.Context) error { return m.Thaw() })
}

// Panic has the host's kernel panic. It boots again by itself, 10 s later.
func (h *Host) Panic(ctx context.Context) error { return h.sysRq(ctx, 'c') }

// KillLargest has the host's kernel kill the process with the most memory, as if it had run out of it.
func (h *Host) KillLargest(ctx context.Context) error { return h.sysRq(ctx, 'f') }

func (h *Host) sysRq(ctx context.Context, key byte) error {
	return h.withMachine(ctx, func(m *qemu.Machine, ctx context.Context) error { return m.SysRq(ctx, key) })
}

// xsrfCookie is gokrazy's, whose value must come in the form as well.
const xsrfCookie = "gokrazy_xsrf"

// KillProgram kills one of the host's programs, such as /user/hvd, by SIGKILL; gokrazy starts it again.
func (h *Host) KillProgram(ctx context.Context, path string) error {
	// Any number will do as long as both are the same.
	form := url.Values{"path": {path}, "signal": {"kill"}, "xsrftoken": {"1"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.IP()+"/restart", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.SetBasicAuth("gokrazy", h.lab.Password)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.AddCookie(&http.Cookie{Name: xsrfCookie, Value: "1"})
	client := h.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, maxPage)) // whatever it says
		return fmt.Errorf("host %s doesn't kill %s: %s: %s", h.cfg.Name, path, resp.Status, strings.TrimSpace(string(b)))
	}
	return nil
}
