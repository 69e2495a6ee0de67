package gdb

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// toy is a machine whose instruction pointer goes through a list of addresses.
type toy struct {
	path []uint64
	at   int
}

func (m *toy) Registers() ([]byte, error) {
	var b []byte
	for i, size := range RegisterSizes {
		v := make([]byte, size)
		if i == 16 {
			binary.LittleEndian.PutUint64(v, m.path[m.at])
		}
		b = append(b, v...)
	}
	return b, nil
}

func (m *toy) Memory(addr uint64, b []byte) int {
	if addr >= 1<<32 {
		return 0
	}
	for i := range b {
		b[i] = byte(addr) + byte(i)
	}
	return len(b)
}

func (m *toy) Step() Stop {
	if m.at == len(m.path)-1 {
		return Stop{Why: AtEnd}
	}
	m.at++
	return Stop{}
}

func (m *toy) Continue(breaks []uint64) Stop {
	for {
		if s := m.Step(); s.Why == AtEnd {
			return s
		}
		if slices.Contains(breaks, m.path[m.at]) {
			return Stop{Why: AtBreak}
		}
	}
}

func (m *toy) ReverseStep() Stop {
	if m.at == 0 {
		return Stop{AtBegin, "the recording begins here"}
	}
	m.at--
	return Stop{}
}

func (m *toy) ReverseContinue(breaks []uint64) Stop {
	for {
		if s := m.ReverseStep(); s.Why == AtBegin {
			return s
		}
		if slices.Contains(breaks, m.path[m.at]) {
			return Stop{Why: AtBreak}
		}
	}
}

func (m *toy) Breakable(addr uint64) bool { return addr != 0xbad }

func (m *toy) Monitor(line string) string { return fmt.Sprintf("%s at %d", line, m.at) }

func packet(data string) string { return fmt.Sprintf("$%s#%02x", data, checksum([]byte(data))) }

// TestSession plays a session of a debugger.
func TestSession(t *testing.T) {
	s := New(&toy{path: []uint64{0x10, 0x20, 0x30, 0x20, 0x40}})
	rip := func(v byte) string { return fmt.Sprintf("%02x00000000000000", v) }
	for _, x := range []struct{ in, want string }{
		{"?", "T05thread:1;"},
		{"qXfer:features:read:target.xml:0,ff0", "l" + features},
		{"qXfer:features:read:target.xml:2,3", "m" + features[2:5]},
		{"p10", rip(0x10)},
		{"m1000,4", "00010203"},
		{"mffffffff81000000,4", "E14"},
		{"M1000,1:00", "E01"},
		{"Z0,20,1", "OK"},
		{"c", "T05swbreak:;thread:1;"},
		{"p10", rip(0x20)},
		{"vCont;c:1", "T05swbreak:;thread:1;"},
		{"bs", "T05thread:1;"},
		{"p10", rip(0x30)},
		{"bc", "T05swbreak:;thread:1;"},
		{"p10", rip(0x20)},
		{"z0,20,1", "OK"},
		{"c", "T05replaylog:end;thread:1;"},
		{"qRcmd," + hex.EncodeToString([]byte("where")), hex.EncodeToString([]byte("where at 4\n"))},
		{"Z2,20,1", ""},
		{"Z0,bad,1", "E01"},
		{"vMustReplyEmpty", ""},
		{"D", "OK"},
	} {
		got := string(s.Feed([]byte(packet(x.in))))
		if want := "+" + packet(x.want); got != want {
			t.Errorf("%s: got %q, want %q", x.in, got, want)
		}
	}
	if !s.Done() {
		t.Error("the session goes on")
	}
}

// TestBegin has a note for the user before the stop.
func TestBegin(t *testing.T) {
	s := New(&toy{path: []uint64{1}})
	got := string(s.Feed([]byte(packet("bs"))))
	note := packet("O" + hex.EncodeToString([]byte("the recording begins here\n")))
	if want := "+" + note + packet("T05replaylog:begin;thread:1;"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestFraming has damaged, repeated and oversized packets.
func TestFraming(t *testing.T) {
	s := New(&toy{path: []uint64{1, 2}})
	for _, x := range []struct{ in, want string }{
		{"$?#00", "-"},
		{"junk+" + packet("qC"), "+" + packet("QC1")},
		{"-", packet("QC1")},
		{"$" + strings.Repeat("x", maxPacket+10), "-"},
		{packet("QStartNoAckMode"), "+" + packet("OK")},
		{packet("qAttached"), packet("1")},
	} {
		if got := string(s.Feed([]byte(x.in))); got != x.want {
			t.Errorf("%.40q: got %q, want %q", x.in, got, x.want)
		}
	}
	one := New(&toy{path: []uint64{1, 2}})
	var got []byte
	for _, c := range []byte(packet("g")) {
		got = append(got, one.Feed([]byte{c})...)
	}
	if whole := New(&toy{path: []uint64{1, 2}}).Feed([]byte(packet("g"))); !bytes.Equal(got, whole) {
		t.Errorf("byte by byte %q, at once %q", got, whole)
	}
}

// FuzzFeed: whatever a debugger sends, what comes back is well formed.
func FuzzFeed(f *testing.F) {
	for _, p := range []string{"?", "g", "p10", "m0,10", "Z0,20,1", "c", "bs", "bc", "vCont;s", "qRcmd,41", "qSupported:x", "k"} {
		f.Add([]byte(packet(p) + packet("g")))
	}
	f.Add([]byte("$m0,}\x03#00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(&toy{path: []uint64{1, 2, 3, 2, 1}})
		out := s.Feed(b)
		for len(out) > 0 {
			switch out[0] {
			case '+', '-':
				out = out[1:]
				continue
			case '$':
			default:
				t.Fatalf("outside of a packet: %q", out)
			}
			end := bytes.IndexByte(out, '#')
			if end < 0 || len(out) < end+3 || fmt.Sprintf("%02x", checksum(out[1:end])) != string(out[end+1:end+3]) {
				t.Fatalf("a bad packet: %q", out)
			}
			out = out[end+3:]
		}
	})
}
