package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// handshakeTimeout bounds a TLS handshake, beside the context of the request.
const handshakeTimeout = 10 * time.Second

// Config says which host to talk to.
type Config struct {
	// Address is "host:port"; Port is added when it is missing.
	Address string
	// Token is the one of the host's host.json.
	Token string
	// Fingerprint pins the host's key: 64 hex digits, see Fingerprint. When it is empty any key is accepted, so whoever
	// is in between learns the token: for networks that are trusted.
	Fingerprint string
	// DialContext connects to the host; nil means net.Dialer's.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client talks to one host. Its methods may be called concurrently, wait as long as their context says, and fail with
// one line: an *Error when it's the host's.
type Client struct {
	cfg  Config
	tls  *tls.Config
	http *http.Client
}

// Fingerprint is what a client pins of a host's key: SHA-256 over the certificate's SubjectPublicKeyInfo (RFC 5280,
// section 4.1.2.7; RFC 8410), in hex.
func Fingerprint(key ed25519.PublicKey) string {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(err) // of an Ed25519 key it never fails
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// Dial makes a client. It doesn't connect: the first request does.
func Dial(cfg Config) *Client {
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		cfg.Address = net.JoinHostPort(strings.Trim(cfg.Address, "[]"), strconv.Itoa(Port))
	}
	if cfg.DialContext == nil {
		cfg.DialContext = (&net.Dialer{}).DialContext
	}
	c := &Client{cfg: cfg}
	c.tls = &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: "duet",
		NextProtos: []string{"http/1.1"},
		// No authority signs a host's certificate: its key is compared instead.
		InsecureSkipVerify: true,
		VerifyConnection:   c.verify,
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:         cfg.DialContext,
			TLSClientConfig:     c.tls,
			TLSHandshakeTimeout: handshakeTimeout,
			MaxIdleConns:        4,
			MaxConnsPerHost:     16,
			IdleConnTimeout:     time.Minute,
			// An image is sent when the host has taken the request.
			ExpectContinueTimeout: handshakeTimeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) verify(s tls.ConnectionState) error {
	if c.cfg.Fingerprint == "" {
		return nil
	}
	sum := sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
	if got := hex.EncodeToString(sum[:]); !strings.EqualFold(got, c.cfg.Fingerprint) {
		return fmt.Errorf("this is another host: its key's fingerprint is %s", got)
	}
	return nil
}

// Host returns the host's own state.
func (c *Client) Host(ctx context.Context) (h Host, err error) {
	return h, c.call(ctx, http.MethodGet, "/v1/host", nil, &h)
}

// Drain has all VMs leave the host, and keeps every copy off it. It returns at once.
func (c *Client) Drain(ctx context.Context) (h Host, err error) {
	return h, c.call(ctx, http.MethodPost, "/v1/host/drain", nil, &h)
}

// Undrain lets VMs come to the host again.
func (c *Client) Undrain(ctx context.Context) (h Host, err error) {
	return h, c.call(ctx, http.MethodPost, "/v1/host/undrain", nil, &h)
}

// Pair has the host pair with the one that shows code. It returns once both have each other's key.
func (c *Client) Pair(ctx context.Context, code string) (h Host, err error) {
	body, err := json.Marshal(map[string]string{"code": code})
	if err != nil {
		return h, err
	}
	return h, c.call(ctx, http.MethodPost, "/v1/host/pair", body, &h)
}

// ShowCode has the host show a new pairing code, which is in the answer.
func (c *Client) ShowCode(ctx context.Context) (h Host, err error) {
	return h, c.call(ctx, http.MethodPost, "/v1/host/pair", []byte("{}"), &h)
}

// Unpair has the host forget its partner.
func (c *Client) Unpair(ctx context.Context) (h Host, err error) {
	return h, c.call(ctx, http.MethodPost, "/v1/host/unpair", nil, &h)
}

// Check returns the host's check of itself.
func (c *Client) Check(ctx context.Context) (list []Finding, err error) {
	return list, c.call(ctx, http.MethodGet, "/v1/host/check", nil, &list)
}

// VMs returns the VMs, sorted by name.
func (c *Client) VMs(ctx context.Context) (list []VM, err error) {
	return list, c.call(ctx, http.MethodGet, "/v1/vms", nil, &list)
}

// VM returns one VM.
func (c *Client) VM(ctx context.Context, name string) (v VM, err error) {
	return v, c.call(ctx, http.MethodGet, vmPath(name), nil, &v)
}

// Create makes a VM of its definition: whatever encodes as one (volume.Definition), or its JSON as json.RawMessage.
func (c *Client) Create(ctx context.Context, definition any) (v VM, err error) {
	body, err := json.Marshal(definition)
	if err != nil {
		return v, fmt.Errorf("VM definition: %w", err)
	}
	return v, c.call(ctx, http.MethodPost, "/v1/vms", body, &v)
}

// Delete removes a VM that is stopped, and its disks.
func (c *Client) Delete(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, vmPath(name), nil, nil)
}

// Start starts a VM that is stopped.
func (c *Client) Start(ctx context.Context, name string) error { return c.act(ctx, name, "start") }

// Stop switches a VM off, now.
func (c *Client) Stop(ctx context.Context, name string) error { return c.act(ctx, name, "stop") }

// Shutdown presses a VM's power button.
func (c *Client) Shutdown(ctx context.Context, name string) error {
	return c.act(ctx, name, "shutdown")
}

// ForceStart starts a VM here although it was the peer's, which the caller knows to be off.
func (c *Client) ForceStart(ctx context.Context, name string) error {
	return c.act(ctx, name, "force-start")
}

// Switchover has a VM that runs here, protected, change hosts: with nothing lost, and protected all the while.
func (c *Client) Switchover(ctx context.Context, name string) error {
	return c.act(ctx, name, "switchover")
}

// Unprotect has a VM run without a secondary until Protect is called. It returns when the volume says so; both hosts follow
// within seconds.
func (c *Client) Unprotect(ctx context.Context, name string) (v VM, err error) {
	return v, c.call(ctx, http.MethodPost, vmPath(name)+"/unprotect", nil, &v)
}

// Protect lets a VM have a secondary again.
func (c *Client) Protect(ctx context.Context, name string) (v VM, err error) {
	return v, c.call(ctx, http.MethodPost, vmPath(name)+"/protect", nil, &v)
}

// TestFailover drops the copy of a VM that runs here, protected: the other one takes over as if this host had died.
func (c *Client) TestFailover(ctx context.Context, name string) error {
	return c.act(ctx, name, "test-failover")
}

// Console returns a VM's last console output, as the guest wrote it.
func (c *Client) Console(ctx context.Context, name string) (text []byte, err error) {
	return text, c.call(ctx, http.MethodGet, vmPath(name)+"/console", nil, &text)
}

// Events returns what happened on the host and to its VMs, oldest first.
func (c *Client) Events(ctx context.Context) (list []Event, err error) {
	return list, c.call(ctx, http.MethodGet, "/v1/events", nil, &list)
}

// EventsSince returns what happened since a time, to a VM if one is named; the zero time is the beginning.
func (c *Client) EventsSince(ctx context.Context, since time.Time, vm string) (list []Event, err error) {
	q := url.Values{}
	if !since.IsZero() {
		q.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if vm != "" {
		q.Set("vm", vm)
	}
	return list, c.call(ctx, http.MethodGet, "/v1/events?"+q.Encode(), nil, &list)
}

func (c *Client) act(ctx context.Context, name, what string) error {
	return c.call(ctx, http.MethodPost, vmPath(name)+"/"+what, nil, nil)
}

func vmPath(name string) string { return "/v1/vms/" + url.PathEscape(name) }

// request makes a request with the token.
func (c *Client) request(ctx context.Context, method, path string, body []byte) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.cfg.Address+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("host %s: not an address", c.cfg.Address)
	}
	if c.cfg.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	if len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	return r, nil
}

// call makes a request and decodes its answer's JSON into out; into a *[]byte goes the body as it is.
func (c *Client) call(ctx context.Context, method, path string, body []byte, out any) error {
	r, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	a, err := c.http.Do(r)
	if err != nil {
		return c.failure(err)
	}
	defer a.Body.Close()
	if a.StatusCode/100 != 2 {
		return ReadError(a)
	}
	b, err := io.ReadAll(io.LimitReader(a.Body, MaxBody+1))
	switch {
	case err != nil:
		return c.failure(err)
	case len(b) > MaxBody:
		return fmt.Errorf("host %s: answer of more than %d bytes", c.cfg.Address, MaxBody)
	case out == nil:
		return nil
	}
	if text, ok := out.(*[]byte); ok {
		*text = b
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("host %s: unexpected answer: %w", c.cfg.Address, err)
	}
	return nil
}

// failure names the host instead of the request.
func (c *Client) failure(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Errorf("host %s: %w", c.cfg.Address, err)
}
