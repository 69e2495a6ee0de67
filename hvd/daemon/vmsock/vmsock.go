// Package vmsock is the daemon's way to the process of one VM: the Unix sockets in the VM's run directory.
//
// # Place
//
// hvd/vmproc listens on the sockets and writes the lines; hvd/daemon asks for the VM's state and events, passes commands on, and connects
// to ports of the guest. It imports hvd/api.
//
// # Sockets
//
//	api.sock      HTTP, the resources below /v1/vm of hvd/api, no token: the directory is the daemon's alone
//	vsock.sock    Firecracker's convention (its docs/vsock.md, "Host-Initiated Connections"): the client writes
//	              "CONNECT <port>\n", gets "OK <number>\n", and from then on bytes are the guest's. A connection
//	              that is closed instead of answered was refused by the guest.
//	console.sock  the stream of hvd/api/console; there while the guest runs on this host
//
// Beside that the process tells of its events by lines on its standard error (EventLine): the last one before it dies must
// not be lost.
package vmsock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

const (
	// APIName is the file name of the socket for HTTP.
	APIName = "api.sock"
	// VsockName is the file name of the socket for streams to the guest.
	VsockName = "vsock.sock"
	// ConsoleName is the file name of the socket for the console.
	ConsoleName = "console.sock"
	// maxAnswer is the longest line that answers CONNECT, in bytes.
	maxAnswer = 64
)

// ErrDown says that the VM's process doesn't answer: it isn't there (yet).
var ErrDown = errors.New("the VM's process is not up")

// Client talks to the process of one VM.
type Client struct {
	dir  string
	http *http.Client
}

// New makes a client for the process whose sockets are in dir.
func New(dir string) *Client {
	c := &Client{dir: dir}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx, APIName) },
		// The process may be restarted between any two requests.
		DisableKeepAlives: true,
	}}
	return c
}

func (c *Client) dial(ctx context.Context, name string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(c.dir, name))
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("%w (%v)", ErrDown, err)
	}
	return conn, err
}

// Reply is what a VM's process answered.
type Reply struct {
	Status int    // of HTTP
	Type   string // Content-Type
	Body   []byte
}

// Do sends a request for a path below /v1/vm ("" or "/start"), and returns the answer, whatever its status.
func (c *Client) Do(ctx context.Context, method, path string) (Reply, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://vm/v1/vm"+path, nil)
	if err != nil {
		return Reply{}, err
	}
	a, err := c.http.Do(r)
	if err != nil {
		return Reply{}, c.failure(ctx, err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, api.MaxBody+1))
	if err != nil {
		return Reply{}, c.failure(ctx, err)
	}
	if len(b) > api.MaxBody {
		return Reply{}, fmt.Errorf("the VM's process answered with more than %d bytes", api.MaxBody)
	}
	return Reply{a.StatusCode, a.Header.Get("Content-Type"), b}, nil
}

// Stream sends a GET for a path below /v1/vm and returns the answer, whose body may come for as long as ctx lasts.
// The caller closes it.
func (c *Client) Stream(ctx context.Context, path string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vm/v1/vm"+path, nil)
	if err != nil {
		return nil, err
	}
	a, err := c.http.Do(r)
	if err != nil {
		return nil, c.failure(ctx, err)
	}
	return a, nil
}

// failure shortens an error of package http to its cause.
func (c *Client) failure(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("the VM's process doesn't answer in time")
	}
	if errors.Is(err, ErrDown) {
		return ErrDown
	}
	return fmt.Errorf("the VM's process: %w", errors.Unwrap(err))
}

// get decodes the JSON of a resource.
func (c *Client) get(ctx context.Context, path string, out any) error {
	r, err := c.Do(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	if r.Status != http.StatusOK {
		return fmt.Errorf("the VM's process answered with HTTP status %d", r.Status)
	}
	if err := json.Unmarshal(r.Body, out); err != nil {
		return fmt.Errorf("the VM's process: unexpected answer: %w", err)
	}
	return nil
}

// VM returns the VM's state.
func (c *Client) VM(ctx context.Context) (v api.VM, err error) { return v, c.get(ctx, "", &v) }

// Events returns what happened to the VM since its process started.
func (c *Client) Events(ctx context.Context) (list []api.Event, err error) {
	return list, c.get(ctx, "/events", &list)
}

// Vsock connects to a port of the guest. ctx bounds the way there, and not the connection's life.
func (c *Client) Vsock(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := c.dial(ctx, VsockName)
	if err != nil {
		if errors.Is(err, ErrDown) {
			err = ErrDown
		}
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = connect(conn, port)
	if !stop() {
		err = fmt.Errorf("no answer from port %d of the guest in time", port)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Console connects to the guest's console. It fails by ErrDown where the guest doesn't run.
func (c *Client) Console(ctx context.Context) (net.Conn, error) {
	conn, err := c.dial(ctx, ConsoleName)
	if errors.Is(err, ErrDown) {
		err = ErrDown
	}
	return conn, err
}

// connect is the client's part of the convention. It reads no byte beyond the answer's line.
func connect(conn io.ReadWriter, port uint32) error {
	refused := fmt.Errorf("nothing listens on vsock port %d of the guest", port)
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return refused
	}
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(conn, b); err != nil {
			return refused
		}
		if b[0] == '\n' {
			break
		}
		if line = append(line, b[0]); len(line) > maxAnswer {
			return errors.New("the VM's process answered CONNECT with a line that is too long")
		}
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("the VM's process answered CONNECT with %q", line)
	}
	return nil
}
