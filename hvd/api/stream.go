package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/duet-ft/duet/hvd/api/console"
)

// Protocol is what a request for a vsock stream upgrades to.
const Protocol = "vsock"

// Vsock connects to a port of a VM's guest. ctx bounds the way there, and not the connection's life. The connection
// has CloseWrite, which the guest sees as the end of the stream.
func (c *Client) Vsock(ctx context.Context, name string, port uint32) (net.Conn, error) {
	return c.stream(ctx, fmt.Sprintf("%s/vsock/%d", vmPath(name), port), Protocol)
}

// OpenConsole connects to the console of a VM's guest, which must run on this host. The stream is hvd/api/console's. ctx
// bounds the way there.
func (c *Client) OpenConsole(ctx context.Context, name string) (net.Conn, error) {
	return c.stream(ctx, vmPath(name)+"/console", console.Protocol)
}

// stream asks for a resource by an upgrade to a protocol.
func (c *Client) stream(ctx context.Context, path, protocol string) (net.Conn, error) {
	raw, err := c.cfg.DialContext(ctx, "tcp", c.cfg.Address)
	if err != nil {
		return nil, c.failure(err)
	}
	conn := tls.Client(raw, c.tls)
	// Whatever is under way fails at once when ctx ends.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	s, err := c.upgrade(ctx, conn, path, protocol)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if e, ok := err.(*Error); ok {
			return nil, e
		}
		return nil, c.failure(err)
	}
	return s, nil
}

func (c *Client) upgrade(ctx context.Context, conn *tls.Conn, path, protocol string) (net.Conn, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	r, err := c.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", protocol)
	if err := r.Write(conn); err != nil {
		return nil, err
	}
	b := bufio.NewReader(conn)
	a, err := http.ReadResponse(b, r)
	if err != nil {
		return nil, err
	}
	if a.StatusCode != http.StatusSwitchingProtocols {
		defer a.Body.Close()
		if a.StatusCode/100 == 2 {
			return nil, Errorf(a.StatusCode, "the host doesn't know %s streams", protocol)
		}
		return nil, ReadError(a)
	}
	if !strings.EqualFold(a.Header.Get("Upgrade"), protocol) {
		return nil, Errorf(a.StatusCode, "the host upgraded to %.40q instead of %s", a.Header.Get("Upgrade"), protocol)
	}
	return &upgraded{conn, b}, nil
}

// Record begins a recording of a VM's next time, d, and returns it as a stream, in the format of hvd/recording. ctx
// bounds the stream's life.
func (c *Client) Record(ctx context.Context, name string, d time.Duration) (io.ReadCloser, error) {
	r, err := c.request(ctx, http.MethodGet, vmPath(name)+"/recording?for="+url.QueryEscape(d.String()), nil)
	if err != nil {
		return nil, err
	}
	a, err := c.http.Do(r)
	if err != nil {
		return nil, c.failure(err)
	}
	if a.StatusCode != http.StatusOK {
		defer a.Body.Close()
		return nil, ReadError(a)
	}
	return a.Body, nil
}

// upgraded is a connection that is a stream now; what came right after the answer is still in the buffer.
type upgraded struct {
	*tls.Conn
	r *bufio.Reader
}

func (s *upgraded) Read(p []byte) (int, error) { return s.r.Read(p) }
