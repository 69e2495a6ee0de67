package server

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/hostkey"
)

// fake is a backend with one VM, "db".
type fake struct {
	mu    sync.Mutex
	asked []string
	guest func() (net.Conn, error)

	stream io.ReadCloser

	disks    []api.Disk
	content  []byte     // of disk root
	imported chan error // how images ended
	cut      bool       // exports break off
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
}

func (f *fake) Host(context.Context) api.Host { return api.Host{Name: "a"} }

func (f *fake) Drain(_ context.Context, on bool) (api.Host, error) {
	f.note("drain %t", on)
	if !on {
		return api.Host{}, api.Errorf(http.StatusInternalServerError, "the file stays")
	}
	return api.Host{Name: "a", Drained: true}, nil
}

func (f *fake) Protect(_ context.Context, name string, on bool) (api.VM, error) {
	f.note("protect %s %t", name, on)
	if on {
		return api.VM{}, api.Errorf(http.StatusServiceUnavailable, "no volume")
	}
	return api.VM{Name: name, Unprotected: true}, nil
}

func (f *fake) Pair(_ context.Context, code string) (api.Host, error) {
	f.note("pair %s", code)
	return api.Host{Name: "a", Peer: "b"}, nil
}

func (f *fake) Unpair(context.Context) (api.Host, error) {
	f.note("unpair")
	return api.Host{}, api.Errorf(http.StatusConflict, "host a has no partner")
}

func (f *fake) Check(context.Context) []api.Finding {
	return []api.Finding{{What: "KVM", Grade: api.Fine, Line: "there"}}
}

func (f *fake) VMs(context.Context) ([]api.VM, error) { return []api.VM{{Name: "db"}}, nil }

func (f *fake) VM(_ context.Context, name string) (api.VM, error) {
	if name != "db" {
		return api.VM{}, api.Errorf(http.StatusNotFound, "there is no VM %q", name)
	}
	return api.VM{Name: name, Role: "primary"}, nil
}

func (f *fake) Create(_ context.Context, definition []byte) (api.VM, error) {
	f.note("create %s", definition)
	return api.VM{Name: "new"}, nil
}

func (f *fake) Delete(_ context.Context, name string) error {
	f.note("delete %s", name)
	return errors.New("the disk\nis on fire")
}

func (f *fake) Forward(_ context.Context, name, method, path string) (vmsock.Reply, error) {
	f.note("%s %s %s", method, name, path)
	if path == "/stop" {
		return vmsock.Reply{Status: http.StatusConflict, Type: "application/json", Body: []byte(`{"error":"it is off already"}`)}, nil
	}
	return vmsock.Reply{Status: 200, Type: "text/plain; charset=utf-8", Body: []byte("login: ")}, nil
}

func (f *fake) Stream(_ context.Context, name, path string) (*http.Response, error) {
	f.note("stream %s %s", name, path)
	if name != "db" {
		return nil, api.Errorf(http.StatusNotFound, "there is no VM %q", name)
	}
	if f.stream == nil {
		return &http.Response{StatusCode: http.StatusConflict, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"error":"not now"}`))}, nil
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/octet-stream"}}, Body: f.stream}, nil
}

func (f *fake) Vsock(_ context.Context, name string, port uint32) (net.Conn, error) {
	f.note("vsock %s %d", name, port)
	return f.guest()
}

func (f *fake) Console(_ context.Context, name string) (net.Conn, error) {
	f.note("console %s", name)
	return f.guest()
}

func (f *fake) Events(context.Context) []api.Event { return nil }

const token = "s3cret"

// serve runs a server until the test ends.
func serve(t *testing.T, f *fake, token string) (addr string, key ed25519.PrivateKey) {
	t.Helper()
	key = hostkey.New()
	cert, err := hostkey.Certificate(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, Config{Certificate: cert, Token: token, Backend: f, Log: func(line string) { t.Log(line) }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String(), key
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestResources(t *testing.T) {
	f := &fake{}
	addr, key := serve(t, f, token)
	c := api.Dial(api.Config{Address: addr, Token: token, Fingerprint: api.Fingerprint(public(key))})
	defer c.Close()
	ctx := deadline(t)
	if h, err := c.Host(ctx); err != nil || h.Name != "a" {
		t.Errorf("Host: %+v, %v", h, err)
	}
	if list, err := c.VMs(ctx); err != nil || len(list) != 1 {
		t.Errorf("VMs: %+v, %v", list, err)
	}
	if v, err := c.VM(ctx, "db"); err != nil || v.Role != "primary" {
		t.Errorf("VM: %+v, %v", v, err)
	}
	if v, err := c.Create(ctx, map[string]string{"name": "new"}); err != nil || v.Name != "new" {
		t.Errorf("Create: %+v, %v", v, err)
	}
	if text, err := c.Console(ctx, "db"); err != nil || string(text) != "login: " {
		t.Errorf("Console: %q, %v", text, err)
	}
	for _, act := range []func(context.Context, string) error{c.Start, c.Shutdown, c.ForceStart} {
		if err := act(ctx, "db"); err != nil {
			t.Error(err)
		}
	}
	if list, err := c.Events(ctx); err != nil || list == nil || len(list) != 0 {
		t.Errorf("Events: %#v, %v", list, err)
	}
	for _, bad := range []struct {
		err    error
		status int
		line   string
	}{
		{second(c.VM(ctx, "a/b c")), 404, `there is no VM "a/b c"`},
		{c.Stop(ctx, "db"), 409, "it is off already"},
		{c.Delete(ctx, "db"), 500, "the disk is on fire"},
		{second(c.Protect(ctx, "db")), 503, "no volume"},
		{second(c.EventsSince(ctx, time.Date(12345, 1, 1, 0, 0, 0, 0, time.UTC), "")), 400, `since="12345-01-01T00:00:00Z": expected a time such as 2026-01-02T15:04:05Z`},
	} {
		var e *api.Error
		if !errors.As(bad.err, &e) || e.Status != bad.status || e.Line != bad.line {
			t.Errorf("error %#v, want status %d, %q", bad.err, bad.status, bad.line)
		}
	}
	want := `create {"name":"new"}|GET db /console|POST db /start|POST db /shutdown|POST db /force-start|POST db /stop|delete db|protect db true`
	if got := strings.Join(f.asked, "|"); got != want {
		t.Errorf("the backend was asked for\n%s, want\n%s", got, want)
	}
}

func second[T any](_ T, err error) error { return err }

func TestAuthorization(t *testing.T) {
	f := &fake{guest: func() (net.Conn, error) { return nil, errors.New("reached") }}
	addr, key := serve(t, f, token)
	ctx := deadline(t)
	for _, wrong := range []string{"", "s3cre", "s3crets", "S3CRET", strings.Repeat("x", 5000)} {
		c := api.Dial(api.Config{Address: addr, Token: wrong})
		var e *api.Error
		for _, err := range []error{second(c.Host(ctx)), c.Start(ctx, "db"), second(c.Vsock(ctx, "db", 1)), second(c.Create(ctx, 1))} {
			if !errors.As(err, &e) || e.Status != http.StatusUnauthorized {
				t.Errorf("token %.10q: %v", wrong, err)
			}
		}
		c.Close()
	}
	if len(f.asked) != 0 {
		t.Errorf("the backend was asked without a token: %q", f.asked)
	}
	other := api.Dial(api.Config{Address: addr, Token: token, Fingerprint: api.Fingerprint(public(hostkey.New()))})
	defer other.Close()
	for _, err := range []error{second(other.Host(ctx)), second(other.Vsock(ctx, "db", 1))} {
		if err == nil || !strings.Contains(err.Error(), api.Fingerprint(public(key))) {
			t.Errorf("another fingerprint: %v, want the host's in the error", err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, "GET", "http://x/v1/host", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Basic "+token)
	w := &recorder{head: http.Header{}}
	Handler(Config{Token: token, Backend: f}).ServeHTTP(w, r)
	if w.status != http.StatusUnauthorized {
		t.Errorf("another scheme: status %d", w.status)
	}
}

type recorder struct {
	head   http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.head }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

func TestBadRequests(t *testing.T) {
	h := Handler(Config{Backend: &fake{}})
	for _, c := range []struct {
		method, path, body string
		status             int
		line               string
	}{
		{"GET", "/", "", 404, "there is no GET /"},
		{"PUT", "/v1/host", "", 404, "there is no PUT /v1/host"},
		{"POST", "/v1/vms/db/explode", "", 404, `a VM can be told to start, stop, shutdown, force-start, switchover, test-failover, and not to "explode"`},
		{"GET", "/v1/vms/db/vsock/x", "", 400, `vsock port "x": expected 0 to 4294967295`},
		{"GET", "/v1/vms/db/vsock/4294967296", "", 400, `vsock port "4294967296": expected 0 to 4294967295`},
		{"GET", "/v1/vms/db/vsock/1", "", 426, "this is a stream: ask with Connection: Upgrade and Upgrade: vsock"},
		{"POST", "/v1/vms", strings.Repeat("x", maxBody+1), 400, "VM definition: http: request body too large"},
	} {
		r, err := http.NewRequest(c.method, "http://x"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		w := &recorder{head: http.Header{}}
		h.ServeHTTP(w, r)
		var e struct{ Error string }
		if err := json.Unmarshal(w.body.Bytes(), &e); err != nil || w.status != c.status || e.Error != c.line {
			t.Errorf("%s %s: status %d, %q (%v), want %d, %q", c.method, c.path, w.status, e.Error, err, c.status, c.line)
		}
	}
}

// pipe is a connection of Unix sockets, so that it can be closed half.
func pipe(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestStream(t *testing.T) {
	here, guest := pipe(t)
	f := &fake{guest: func() (net.Conn, error) { return here, nil }}
	addr, _ := serve(t, f, token)
	ctx, cancel := context.WithCancel(deadline(t))
	conn, err := api.Dial(api.Config{Address: addr, Token: token}).Vsock(ctx, "db", 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel() // bounds only the way to the stream
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		b, _ := io.ReadAll(guest)
		guest.Write(b)
		guest.Write([]byte("end"))
		guest.Close()
	}()
	if _, err := conn.Write(big); err != nil {
		t.Fatal(err)
	}
	// The guest sees the end of what comes, and answers only then.
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, append(big, "end"...)) {
		t.Errorf("%d bytes came back (%v), want %d", len(got), err, len(big)+3)
	}
	if len(f.asked) != 1 || f.asked[0] != "vsock db 1024" {
		t.Errorf("the backend was asked for %q", f.asked)
	}
}

// TestConsoleStream upgrades the resource that also has the last output.
func TestConsoleStream(t *testing.T) {
	here, guest := pipe(t)
	f := &fake{guest: func() (net.Conn, error) { return here, nil }}
	addr, _ := serve(t, f, token)
	conn, err := api.Dial(api.Config{Address: addr, Token: token}).OpenConsole(deadline(t), "db")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "ls")
	b := make([]byte, 2)
	if _, err := io.ReadFull(guest, b); err != nil || string(b) != "ls" {
		t.Errorf("the guest got %q (%v)", b, err)
	}
	guest.Close()
	if b, err := io.ReadAll(conn); err != nil || len(b) != 0 {
		t.Errorf("after the guest's end: %q, %v", b, err)
	}
	if len(f.asked) != 1 || f.asked[0] != "console db" {
		t.Errorf("the backend was asked for %q", f.asked)
	}
	r, err := http.NewRequest("GET", "http://x/v1/vms/db/console", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Upgrade", "vsock")
	r.Header.Set("Connection", "upgrade")
	w := &recorder{head: http.Header{}}
	Handler(Config{Backend: f}).ServeHTTP(w, r)
	if w.status != http.StatusUpgradeRequired {
		t.Errorf("another protocol: status %d", w.status)
	}
}

// TestStreamOfBytesTooEarly sends bytes for the guest in one piece with the request.
func TestStreamOfBytesTooEarly(t *testing.T) {
	here, guest := pipe(t)
	addr, _ := serve(t, &fake{guest: func() (net.Conn, error) { return here, nil }}, "")
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v1/vms/db/vsock/5 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: vsock\r\n\r\nearly")
	b := make([]byte, 5)
	guest.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(guest, b); err != nil || string(b) != "early" {
		t.Errorf("the guest got %q (%v)", b, err)
	}
}

func TestStreamEndsWithServer(t *testing.T) {
	here, guest := pipe(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := hostkey.Certificate(hostkey.New())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f := &fake{guest: func() (net.Conn, error) { return here, nil }}
	go Serve(ctx, l, Config{Certificate: cert, Backend: f, Log: func(string) {}})
	conn, err := api.Dial(api.Config{Address: l.Addr().String()}).Vsock(deadline(t), "db", 1)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for _, c := range []net.Conn{conn, guest} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the server's end: %v", err)
		}
	}
}

func TestStreamRefused(t *testing.T) {
	f := &fake{guest: func() (net.Conn, error) { return nil, api.Errorf(502, "nothing listens") }}
	addr, _ := serve(t, f, "")
	_, err := api.Dial(api.Config{Address: addr}).Vsock(deadline(t), "db", 1)
	var e *api.Error
	if !errors.As(err, &e) || e.Status != 502 || e.Line != "nothing listens" {
		t.Errorf("error %v", err)
	}
}

// TestTooManyConnections fills the server, and finds room again once one is closed.
func TestTooManyConnections(t *testing.T) {
	addr, _ := serve(t, &fake{}, "")
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range MaxConnections {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		c.Close()
		t.Fatalf("connection %d was served", MaxConnections+1)
	}
	open[0].Close()
	ctx := deadline(t)
	c := api.Dial(api.Config{Address: addr})
	defer c.Close()
	for {
		_, err := c.Host(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("no room after a connection was closed: %v", err)
		}
	}
}
