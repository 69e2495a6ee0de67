package api

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestRequests looks at what each method asks for, and what it makes of the answer.
func TestRequests(t *testing.T) {
	asked, answer := "", ""
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = fmt.Sprintf("%s %s [%s] %s", r.Method, r.URL.EscapedPath(), r.Header.Get("Content-Type"), body)
		if r.Header.Get("Authorization") != "" {
			asked += " with a token, which there is none of"
		}
		io.WriteString(w, answer)
	}))
	defer s.Close()
	c := Dial(Config{Address: s.Listener.Addr().String()})
	defer c.Close()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	type outcome struct {
		v   any
		err error
	}
	result := func(v any, err error) outcome { return outcome{v, err} }
	only := func(err error) outcome { return outcome{nil, err} }
	for _, x := range []struct {
		name, answer string
		call         func(ctx context.Context) outcome
		asked        string
		want         any
	}{
		{"Host", `{"name":"a","kvm":"ok","new":1}`, func(ctx context.Context) outcome { return result(c.Host(ctx)) }, "GET /v1/host [] ", Host{Name: "a", KVM: "ok"}},
		{"Drain", `{"name":"a","drained":true}`, func(ctx context.Context) outcome { return result(c.Drain(ctx)) }, "POST /v1/host/drain [] ", Host{Name: "a", Drained: true}},
		{"Undrain", `{"name":"a"}`, func(ctx context.Context) outcome { return result(c.Undrain(ctx)) }, "POST /v1/host/undrain [] ", Host{Name: "a"}},
		{"Unprotect", `{"name":"db","unprotected":true}`, func(ctx context.Context) outcome { return result(c.Unprotect(ctx, "db")) }, "POST /v1/vms/db/unprotect [] ", VM{Name: "db", Unprotected: true}},
		{"Protect", `{"name":"db"}`, func(ctx context.Context) outcome { return result(c.Protect(ctx, "db")) }, "POST /v1/vms/db/protect [] ", VM{Name: "db"}},
		{
			"EventsSince", `[{"at":"2026-01-02T03:04:05Z","what":"hvd started"}]`, func(ctx context.Context) outcome {
				return result(c.EventsSince(ctx, time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), "db"))
			},
			"GET /v1/events [] ",
			[]Event{{At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), What: "hvd started"}},
		},
		{"Pair", `{"name":"a","peer":"b"}`, func(ctx context.Context) outcome { return result(c.Pair(ctx, "4711-0815")) }, `POST /v1/host/pair [application/json] {"code":"4711-0815"}`, Host{Name: "a", Peer: "b"}},
		{"ShowCode", `{"name":"a","code":"4711-0815"}`, func(ctx context.Context) outcome { return result(c.ShowCode(ctx)) }, `POST /v1/host/pair [application/json] {}`, Host{Name: "a", Code: "4711-0815"}},
		{"Unpair", `{"name":"a"}`, func(ctx context.Context) outcome { return result(c.Unpair(ctx)) }, "POST /v1/host/unpair [] ", Host{Name: "a"}},
		{"Check", `[{"what":"KVM","grade":"broken","line":"no"}]`, func(ctx context.Context) outcome { return result(c.Check(ctx)) }, "GET /v1/host/check [] ", []Finding{{"KVM", Broken, "no"}}},
		{"VMs", `[{"name":"db"}]`, func(ctx context.Context) outcome { return result(c.VMs(ctx)) }, "GET /v1/vms [] ", []VM{{Name: "db"}}},
		{
			"VM", `{"name":"d/b","seed":{"pages":1},"counters":{"exits":2}}`, func(ctx context.Context) outcome { return result(c.VM(ctx, "d/b ?")) },
			"GET /v1/vms/d%2Fb%20%3F [] ",
			VM{Name: "d/b", Seed: &Seed{Pages: 1}, Counters: Counters{Exits: 2}},
		},
		{
			"Create", `{"name":"db"}`, func(ctx context.Context) outcome {
				return result(c.Create(ctx, json.RawMessage(`{"name": "db"}`)))
			},
			`POST /v1/vms [application/json] {"name":"db"}`,
			VM{Name: "db"},
		},
		{"Delete", `{}`, func(ctx context.Context) outcome { return only(c.Delete(ctx, "db")) }, "DELETE /v1/vms/db [] ", nil},
		{"Start", `{}`, func(ctx context.Context) outcome { return only(c.Start(ctx, "db")) }, "POST /v1/vms/db/start [] ", nil},
		{"Stop", ``, func(ctx context.Context) outcome { return only(c.Stop(ctx, "db")) }, "POST /v1/vms/db/stop [] ", nil},
		{"Shutdown", `{}`, func(ctx context.Context) outcome { return only(c.Shutdown(ctx, "db")) }, "POST /v1/vms/db/shutdown [] ", nil},
		{"ForceStart", `{}`, func(ctx context.Context) outcome { return only(c.ForceStart(ctx, "db")) }, "POST /v1/vms/db/force-start [] ", nil},
		{"Switchover", `{}`, func(ctx context.Context) outcome { return only(c.Switchover(ctx, "db")) }, "POST /v1/vms/db/switchover [] ", nil},
		{"TestFailover", `{}`, func(ctx context.Context) outcome { return only(c.TestFailover(ctx, "db")) }, "POST /v1/vms/db/test-failover [] ", nil},
		{"Console", "a\x00\xff{", func(ctx context.Context) outcome { return result(c.Console(ctx, "db")) }, "GET /v1/vms/db/console [] ", []byte("a\x00\xff{")},
		{
			"Events", `[{"at":"2026-01-02T03:04:05Z","what":"hvd started"}]`, func(ctx context.Context) outcome { return result(c.Events(ctx)) },
			"GET /v1/events [] ",
			[]Event{{At: at, What: "hvd started"}},
		},
	} {
		asked, answer = "", x.answer
		got := x.call(deadline(t))
		if got.err != nil || asked != x.asked || !reflect.DeepEqual(got.v, x.want) {
			t.Errorf("%s: asked %q, want %q; %+v (%v), want %+v", x.name, asked, x.asked, got.v, got.err, x.want)
		}
	}
	if _, err := c.Create(deadline(t), func() {}); err == nil || !strings.HasPrefix(err.Error(), "VM definition: ") {
		t.Errorf("a definition that isn't one: %v", err)
	}
}

// TestStreamRequests asks for both streams. What comes in one piece with the answer is the stream's.
func TestStreamRequests(t *testing.T) {
	asked, protocol := "", ""
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.Path + " " + r.Header.Get("Upgrade") + " " + r.Header.Get("Authorization")
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nhello", protocol)
		io.Copy(conn, bufio.NewReader(conn))
	}))
	defer s.Close()
	c := Dial(Config{Address: s.Listener.Addr().String(), Token: "tok"})
	protocol = "vsock"
	conn, err := c.Vsock(deadline(t), "db", 4294967295)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, ", world")
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello, world" {
		t.Errorf("the stream has %q (%v)", b, err)
	}
	if want := "GET /v1/vms/db/vsock/4294967295 vsock Bearer tok"; asked != want {
		t.Errorf("asked %q, want %q", asked, want)
	}
	if _, err := c.OpenConsole(deadline(t), "db"); err == nil || err.Error() != `the host upgraded to "vsock" instead of console` {
		t.Errorf("another protocol: %v", err)
	}
	protocol = "Console"
	screen, err := c.OpenConsole(deadline(t), "db")
	if err != nil {
		t.Fatal(err)
	}
	screen.Close()
	if want := "GET /v1/vms/db/console console Bearer tok"; asked != want {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

// TestFingerprint has the fingerprint of a known key, and pins one that isn't the host's.
func TestFingerprint(t *testing.T) {
	key := make(ed25519.PublicKey, ed25519.PublicKeySize)
	if got := Fingerprint(key); got != "722abd12e99a5367f375aeb9672a8e07712e03c2add16fa8d6914d1cfa2efe0c" {
		t.Errorf("the fingerprint of the key of zeros is %s", got)
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request to another host") }))
	defer s.Close()
	c := Dial(Config{Address: s.Listener.Addr().String(), Token: "tok", Fingerprint: Fingerprint(key)})
	defer c.Close()
	for _, err := range []error{
		func() error { _, err := c.Host(deadline(t)); return err }(),
		func() error { _, err := c.OpenConsole(deadline(t), "db"); return err }(),
	} {
		var e *Error
		if err == nil || errors.As(err, &e) || !strings.Contains(err.Error(), "this is another host: its key's fingerprint is ") {
			t.Errorf("error %v", err)
		}
	}
}
