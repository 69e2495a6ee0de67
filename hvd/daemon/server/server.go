// Package server is a host's API on the network: TLS, the token, limits, and the resources of hvd/api over a Backend.
//
// # Place
//
// hvd/daemon implements Backend and runs Serve on its listener. It imports hvd/api, hvd/api/console and hvd/daemon/vmsock.
//
// # A connection
//
//	accept (at most MaxConnections) -> TLS 1.3 -> request: header in 10 s, at most 16 KiB
//	  -> token, compared in constant time -> resource, body at most 1 MiB -> answer
//	                                      -> or 101 and a raw stream to the guest, until both sides have ended
//
// HTTP/1.1 only: a stream takes over the connection.
package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/api/console"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
)

const (
	// MaxConnections is how many connections are served at once, streams to guests included; more are closed.
	MaxConnections = 256
	maxHeader      = 16 << 10
	maxBody        = 1 << 20

	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	writeTimeout  = 2 * time.Minute // from the end of the header on; includes the work
	idleTimeout   = 2 * time.Minute

	// How long the work may take.
	readLimit   = 10 * time.Second
	changeLimit = 90 * time.Second
	streamLimit = 20 * time.Second // until a stream is connected
)

// Backend is what the resources are about. Errors are *api.Error where the status matters; others become 500.
type Backend interface {
	Host(ctx context.Context) api.Host
	// Drain has all VMs leave the host and keeps them off, or ends that.
	Drain(ctx context.Context, on bool) (api.Host, error)
	// Pair pairs the host with the one that shows code, and without a code shows one here.
	Pair(ctx context.Context, code string) (api.Host, error)
	// Unpair forgets the partner.
	Unpair(ctx context.Context) (api.Host, error)
	Check(ctx context.Context) []api.Finding
	VMs(ctx context.Context) ([]api.VM, error)
	VM(ctx context.Context, name string) (api.VM, error)
	Create(ctx context.Context, definition []byte) (api.VM, error)
	Delete(ctx context.Context, name string) error
	// Protect lets a VM have a secondary, or has it run without one.
	Protect(ctx context.Context, name string, on bool) (api.VM, error)
	// Forward sends a request to the VM's process: path is what comes after the VM, such as "/start".
	Forward(ctx context.Context, name, method, path string) (vmsock.Reply, error)
	// Stream sends a GET to the VM's process; the answer's body comes for as long as ctx lasts.
	Stream(ctx context.Context, name, path string) (*http.Response, error)
	Vsock(ctx context.Context, name string, port uint32) (net.Conn, error)
	// Console connects to the console of a guest that runs here; the stream is hvd/api/console's.
	Console(ctx context.Context, name string) (net.Conn, error)
	Events(ctx context.Context) []api.Event
	Disks
}

// Actions are what a VM can be told by POST.
var Actions = []string{"start", "stop", "shutdown", "force-start", "switchover", "test-failover"}

// Config is how to serve.
type Config struct {
	Certificate tls.Certificate
	// Token is what clients must present; empty: none is asked for, so the listener must be a local one.
	Token   string
	Backend Backend
	// Log is told what goes wrong in the server itself, one line each.
	Log func(line string)
}

// Serve serves on l until ctx ends, then closes l and all connections, streams included.
func Serve(ctx context.Context, l net.Listener, cfg Config) error {
	open := &connections{all: map[net.Conn]struct{}{}}
	s := &http.Server{
		Handler:           Handler(cfg),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(lineWriter(cfg.Log), "", 0),
		Protocols:         new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	tlsConfig := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cfg.Certificate},
		NextProtos:   []string{"http/1.1"},
	}
	stop := context.AfterFunc(ctx, func() {
		s.Close()
		open.closeAll()
	})
	defer stop()
	err := s.Serve(tls.NewListener(&limited{l, open}, tlsConfig))
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// lineWriter passes what package http logs on, without what any port scan causes.
type lineWriter func(line string)

func (w lineWriter) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	if !strings.Contains(line, "TLS handshake error") {
		w("api: " + api.OneLine(line))
	}
	return len(p), nil
}

// Handler serves the resources, behind the token.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg.Backend, cfg.Log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/host", h.host)
	mux.HandleFunc("POST /v1/host/drain", h.drain(true))
	mux.HandleFunc("POST /v1/host/undrain", h.drain(false))
	mux.HandleFunc("POST /v1/host/pair", h.pair)
	mux.HandleFunc("POST /v1/host/unpair", h.unpair)
	mux.HandleFunc("GET /v1/host/check", h.check)
	mux.HandleFunc("GET /v1/vms", h.vms)
	mux.HandleFunc("POST /v1/vms", h.create)
	mux.HandleFunc("GET /v1/vms/{name}", h.vm)
	mux.HandleFunc("DELETE /v1/vms/{name}", h.delete)
	mux.HandleFunc("GET /v1/vms/{name}/console", h.console)
	mux.HandleFunc("GET /v1/vms/{name}/recording", h.recording)
	mux.HandleFunc("GET /v1/vms/{name}/vsock/{port}", h.vsock)
	mux.HandleFunc("POST /v1/vms/{name}/protect", h.protect(true))
	mux.HandleFunc("POST /v1/vms/{name}/unprotect", h.protect(false))
	mux.HandleFunc("POST /v1/vms/{name}/{action}", h.act)
	mux.HandleFunc("GET /v1/events", h.events)
	mux.HandleFunc("GET /v1/volume", h.volume)
	mux.HandleFunc("GET /v1/disks", h.disks)
	const disk = " /v1/vms/{name}/disks/{disk}"
	mux.HandleFunc("POST"+disk, asked(func(ctx context.Context, vm, disk string, s api.DiskSize) (api.Disk, error) {
		return h.b.AddDisk(ctx, vm, disk, s.SizeBytes)
	}))
	mux.HandleFunc("POST"+disk+"/grow", asked(func(ctx context.Context, vm, disk string, s api.DiskSize) (api.Disk, error) {
		return h.b.GrowDisk(ctx, vm, disk, s.SizeBytes)
	}))
	mux.HandleFunc("POST"+disk+"/copy", asked(h.b.CopyDisk))
	mux.HandleFunc("DELETE"+disk, h.deleteDisk)
	mux.HandleFunc("GET"+disk+"/content", h.exportDisk)
	mux.HandleFunc("PUT"+disk+"/content", h.importDisk)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		api.WriteError(w, api.Errorf(http.StatusNotFound, "there is no %s %.100s", r.Method, r.URL.Path))
	})
	want := sha256.Sum256([]byte(cfg.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cfg.Token != "" && !authorized(r, want) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			api.WriteError(w, api.Errorf(http.StatusUnauthorized, "wrong or missing token: it is the one in the host's host.json, or the one on its screen"))
			return
		}
		if r.Method != http.MethodPut { // an image may have any size
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		}
		mux.ServeHTTP(w, r)
	})
}

// authorized compares hashes, so that not even the token's length shows in the time it takes.
func authorized(r *http.Request, want [sha256.Size]byte) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1 && strings.EqualFold(scheme, "Bearer")
}

type handler struct {
	b   Backend
	log func(line string)
}

func (h *handler) host(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readLimit)
	defer cancel()
	answer(w, h.b.Host(ctx), nil)
}

func (h *handler) drain(on bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
		defer cancel()
		host, err := h.b.Drain(ctx, on)
		answer(w, host, err)
	}
}

func (h *handler) protect(on bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
		defer cancel()
		v, err := h.b.Protect(ctx, r.PathValue("name"), on)
		answer(w, v, err)
	}
}

func (h *handler) vms(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readLimit)
	defer cancel()
	list, err := h.b.VMs(ctx)
	if list == nil {
		list = []api.VM{}
	}
	answer(w, list, err)
}

func (h *handler) vm(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readLimit)
	defer cancel()
	v, err := h.b.VM(ctx, r.PathValue("name"))
	answer(w, v, err)
}

func (h *handler) events(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readLimit)
	defer cancel()
	since, vm, err := wanted(r.URL.Query())
	if err != nil {
		answer(w, nil, err)
		return
	}
	list := []api.Event{}
	for _, e := range h.b.Events(ctx) {
		if !e.At.Before(since) && (vm == "" || e.VM == vm) {
			list = append(list, e)
		}
	}
	answer(w, list, nil)
}

// wanted is which events a query asks for.
func wanted(q url.Values) (since time.Time, vm string, err error) {
	if text := q.Get("since"); text != "" {
		if since, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return since, "", api.Errorf(http.StatusBadRequest, "since=%.60q: expected a time such as 2026-01-02T15:04:05Z", text)
		}
	}
	return since, q.Get("vm"), nil
}

func (h *handler) create(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
	defer cancel()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		api.WriteError(w, api.Errorf(http.StatusBadRequest, "VM definition: %v", err))
		return
	}
	v, err := h.b.Create(ctx, body)
	answer(w, v, err)
}

func (h *handler) delete(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
	defer cancel()
	answer(w, struct{}{}, h.b.Delete(ctx, r.PathValue("name")))
}

func (h *handler) act(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
	defer cancel()
	action := r.PathValue("action")
	if !slices.Contains(Actions, action) {
		api.WriteError(w, api.Errorf(http.StatusNotFound, "a VM can be told to %s, and not to %.40q", strings.Join(Actions, ", "), action))
		return
	}
	h.forward(ctx, w, r.PathValue("name"), http.MethodPost, "/"+action)
}

// console answers with the last output, or with a stream where one is asked for.
func (h *handler) console(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		stream(w, r, console.Protocol, func(ctx context.Context) (net.Conn, error) {
			return h.b.Console(ctx, r.PathValue("name"))
		})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readLimit)
	defer cancel()
	h.forward(ctx, w, r.PathValue("name"), http.MethodGet, "/console")
}

// forward passes the answer of the VM's process on as it is.
func (h *handler) forward(ctx context.Context, w http.ResponseWriter, name, method, path string) {
	reply, err := h.b.Forward(ctx, name, method, path)
	if err != nil {
		answer(w, nil, err)
		return
	}
	if reply.Type != "" {
		w.Header().Set("Content-Type", reply.Type)
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(reply.Status)
	_, _ = w.Write(reply.Body) // a client that is gone misses nothing
}

// answer writes v, or the error if there is one.
func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		api.WriteError(w, asError(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that is gone misses nothing
}

func asError(err error) *api.Error {
	var e *api.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, vmsock.ErrDown):
		return api.Errorf(http.StatusServiceUnavailable, "%v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(http.StatusGatewayTimeout, "it takes too long; it may yet happen")
	}
	return api.Errorf(http.StatusInternalServerError, "%v", err)
}

// vsock turns the connection into a stream to a port of the guest.
func (h *handler) vsock(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.PathValue("port"), 10, 32)
	if err != nil {
		api.WriteError(w, api.Errorf(http.StatusBadRequest, "vsock port %.40q: expected 0 to 4294967295", r.PathValue("port")))
		return
	}
	stream(w, r, api.Protocol, func(ctx context.Context) (net.Conn, error) {
		return h.b.Vsock(ctx, r.PathValue("name"), uint32(port))
	})
}

// stream turns the connection into one to the guest.
func stream(w http.ResponseWriter, r *http.Request, protocol string, connect func(ctx context.Context) (net.Conn, error)) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), protocol) || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
		w.Header().Set("Upgrade", protocol)
		api.WriteError(w, api.Errorf(http.StatusUpgradeRequired, "this is a stream: ask with Connection: Upgrade and Upgrade: %s", protocol))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), streamLimit)
	defer cancel()
	guest, err := connect(ctx)
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer guest.Close()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer conn.Close()
	head := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"
	conn.SetWriteDeadline(time.Now().Add(headerTimeout))
	if _, err := io.WriteString(conn, head); err != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	var first []byte
	if n := buffered.Reader.Buffered(); n > 0 {
		first, _ = buffered.Reader.Peek(n)
	}
	splice(conn, guest, first)
}

// splice copies both ways until both have ended; first goes to the guest before anything else. An end of one way is
// passed on as such, an error ends both.
func splice(client, guest net.Conn, first []byte) {
	var both sync.WaitGroup
	copyOne := func(to, from net.Conn, first []byte) {
		_, err := to.Write(first)
		if err == nil {
			_, err = io.Copy(to, from)
		}
		half, ok := to.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			client.Close()
			guest.Close()
		}
	}
	both.Go(func() { copyOne(guest, client, first) })
	both.Go(func() { copyOne(client, guest, nil) })
	both.Wait()
}
