package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestDialContext reaches the host by a network of the caller's only, by the address as it was given.
func TestDialContext(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer tok" {
			WriteError(w, Errorf(401, "no token"))
			return
		}
		io.WriteString(w, `{"name":"a"}`)
	}))
	defer s.Close()
	for given, dialled := range map[string]string{
		"192.0.2.7": "192.0.2.7:7443", "192.0.2.7:9": "192.0.2.7:9", "2001:db8::7": "[2001:db8::7]:7443", "[2001:db8::7]": "[2001:db8::7]:7443",
	} {
		asked := ""
		c := Dial(Config{Address: given, Token: "tok", DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			asked = address
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.Listener.Addr().String())
		}})
		h, err := c.Host(deadline(t))
		c.Close()
		if err != nil || h.Name != "a" || asked != dialled {
			t.Errorf("%s: dialled %s (%v), want %s", given, asked, err, dialled)
		}
	}
}

// TestOtherServers talks to servers that aren't a host, and expects one line each.
func TestOtherServers(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		line   string
	}{
		{"another kind", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>\nno", 500) }, "unexpected answer: HTTP status 500 Internal Server Error"},
		{"a redirection", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, "unexpected answer: HTTP status 302 Found"},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }, "unexpected answer"},
		{"too long", func(w http.ResponseWriter, _ *http.Request) { w.Write(bytes.Repeat([]byte(" "), MaxBody+1)) }, "answer of more than"},
		{"an error with tricks", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			io.WriteString(w, `{"error":"a\n\u001b[2Jb`+strings.Repeat("x", 4096)+`"}`)
		}, "a  [2Jbxx"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewTLSServer(c.answer)
			defer s.Close()
			client := Dial(Config{Address: s.Listener.Addr().String()})
			defer client.Close()
			_, err := client.Host(deadline(t))
			if err == nil || !strings.Contains(err.Error(), c.line) || strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 2000 {
				t.Errorf("error %v, want one line with %q", err, c.line)
			}
		})
	}
	t.Run("a stream", func(t *testing.T) {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") }))
		defer s.Close()
		_, err := Dial(Config{Address: s.Listener.Addr().String()}).Vsock(deadline(t), "db", 1)
		if err == nil || err.Error() != "the host doesn't know vsock streams" {
			t.Errorf("error %v", err)
		}
	})
}

// TestSilentHost accepts and never answers: the context ends it.
func TestSilentHost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	c := Dial(Config{Address: l.Addr().String()})
	if _, err := c.Host(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Host: %v", err)
	}
	if _, err := c.Vsock(ctx, "db", 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Vsock: %v", err)
	}
}

// TestSilentUpgrade answers the handshake, and not the request for a stream.
func TestSilentUpgrade(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-release
	}))
	defer s.Close()
	defer close(release)
	ctx, cancel := context.WithCancel(deadline(t))
	go func() {
		<-asked
		cancel()
	}()
	if _, err := Dial(Config{Address: s.Listener.Addr().String()}).Vsock(ctx, "db", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Vsock: %v", err)
	}
}

func FuzzOneLine(f *testing.F) {
	f.Add("a\nb")
	f.Add("\xff\x1b[2J" + strings.Repeat("é", 600))
	f.Fuzz(func(t *testing.T, s string) {
		got := OneLine(s)
		if strings.ContainsAny(got, "\n\r\x1b") || len(got) > maxLine || OneLine(got) != got {
			t.Fatalf("OneLine(%q) = %q", s, got)
		}
	})
}
