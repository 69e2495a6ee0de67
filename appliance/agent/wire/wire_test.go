package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// peer is a connection whose other end has already said everything.
type peer struct {
	sent  bytes.Buffer
	reply io.Reader
}

func (p *peer) Write(b []byte) (int, error) { return p.sent.Write(b) }
func (p *peer) Read(b []byte) (int, error)  { return p.reply.Read(b) }

func TestCall(t *testing.T) {
	want := Info{BootID: "b", Uptime: 12.5, Hostname: "h", Kernel: "k", Addresses: []Address{{"eth0", "192.0.2.7/24"}}}
	p := &peer{reply: bytes.NewReader(FormatReply(want, nil))}
	var got Info
	if err := Call(p, Information, nil, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if s := p.sent.String(); s != `{"execute":"info"}`+"\n" {
		t.Errorf("sent %q", s)
	}
	p = &peer{reply: strings.NewReader(`{"return":{}}` + "\n")}
	if err := Call(p, Shutdown, ShutdownArguments{PowerOff}, nil); err != nil {
		t.Fatal(err)
	}
	if s := p.sent.String(); s != `{"execute":"shutdown","arguments":{"mode":"poweroff"}}`+"\n" {
		t.Errorf("sent %q", s)
	}
}

func TestCallFails(t *testing.T) {
	for _, c := range []struct{ name, reply, want string }{
		{"the guest's error", `{"error":{"class":"GenericError","desc":"no such thing"}}` + "\n", "no such thing"},
		{"hung up", "", "no reply to ping: EOF"},
		{"hung up within the line", `{"return"`, "unexpected EOF"},
		{"neither", "{}\n", "neither"},
		{"not JSON", "hello\n", "not a reply"},
		{"endless", strings.Repeat("x", MaxLine+1), "longer than"},
	} {
		err := Call(&peer{reply: strings.NewReader(c.reply)}, Ping, nil, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	err := Call(&peer{reply: strings.NewReader(`{"error":{"class":"CommandNotFound","desc":"x"}}` + "\n")}, "x", nil, nil)
	var e *Error
	if !errors.As(err, &e) || e.Class != ClassCommandNotFound {
		t.Errorf("the agent's error is %#v", err)
	}
	if err := Call(&peer{}, Ping, strings.Repeat("x", MaxLine), nil); !errors.Is(err, ErrTooLong) {
		t.Errorf("a long request: %v", err)
	}
}

func TestParseRequest(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{`{"execute":"ping"}`, ""},
		{` { "execute" : "ping", "arguments" : {} } `, ""},
		{``, "EOF"},
		{`{}`, `no "execute"`},
		{`{"execute":"ping"}{"execute":"ping"}`, "more than one"},
		{`{"execute":"ping","id":1}`, "unknown field"},
		{`{"execute":5}`, "cannot unmarshal"},
		{`[]`, "cannot unmarshal"},
	} {
		_, err := ParseRequest([]byte(c.line))
		if (err != nil) != (c.want != "") || err != nil && (!strings.Contains(err.Desc, c.want) || err.Class != ClassBadRequest) {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
	}
}

func TestLongestLine(t *testing.T) {
	fits := strings.Repeat("x", MaxLine-1) + "\nnext\n"
	r := NewReader(strings.NewReader(fits))
	if b, err := ReadLine(r); err != nil || len(b) != MaxLine-1 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if b, err := ReadLine(r); err != nil || string(b) != "next" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := ReadLine(NewReader(strings.NewReader("x" + fits))); !errors.Is(err, ErrTooLong) {
		t.Errorf("one byte more: %v", err)
	}
	if l := FormatReply(strings.Repeat("x", MaxLine), nil); len(l) > MaxLine || !bytes.Contains(l, []byte(ClassGeneric)) {
		t.Errorf("a reply of %d bytes", len(l))
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"execute":"shutdown","arguments":{"mode":"poweroff"}}`))
	f.Add([]byte(`{"execute":"ping","arguments":null}`))
	f.Add([]byte(strings.Repeat("[", 20000)))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := ParseRequest(line)
		if err != nil {
			if l := FormatReply(nil, err); !bytes.HasSuffix(l, []byte("\n")) || bytes.Count(l, []byte("\n")) != 1 || len(l) > MaxLine {
				t.Fatalf("reply %q", l)
			}
			return
		}
		var a ShutdownArguments
		if err := ParseArguments(r, &a); err == nil && len(a.Mode) > len(line)*3 {
			t.Fatal("a mode from nowhere")
		}
	})
}

func FuzzParseReply(f *testing.F) {
	f.Add([]byte(`{"return":{"boot_id":"x","uptime":1e3,"addresses":[{"interface":"a"}]}}`))
	f.Add([]byte(`{"error":{"class":"x","desc":"y"}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var i Info
		ParseReply(line, &i)
		ReadLine(NewReader(bytes.NewReader(line)))
	})
}
