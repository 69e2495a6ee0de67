package iscsi

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func encodePDU(t testing.TB, f framing, h header, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	if err := f.write(w, &h, data); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDigestExamples are the CRC32C examples of RFC 3720, appendix B.4.
func TestDigestExamples(t *testing.T) {
	ones := bytes.Repeat([]byte{0xff}, 32)
	for _, c := range []struct {
		data []byte
		want string
	}{{make([]byte, 32), "aa36918a"}, {ones, "43aba862"}} {
		f := framing{dataDigest: true, maxData: 1024}
		p := encodePDU(t, f, header{}, c.data)
		if got := hex.EncodeToString(p[len(p)-4:]); got != c.want {
			t.Errorf("digest of % x: %s, want %s", c.data[:1], got, c.want)
		}
	}
}

func TestPDURoundTrip(t *testing.T) {
	for n := range 9 {
		for _, f := range []framing{{}, {headerDigest: true}, {dataDigest: true}, {headerDigest: true, dataDigest: true}} {
			f.maxData = 64
			data := bytes.Repeat([]byte{0xa5}, n)
			h := header{0: byte(opNopIn), 20: 7}
			p := encodePDU(t, f, h, data)
			got, rest, err := decodePDU(f, p)
			if err != nil || !bytes.Equal(got, data) || len(rest) != 0 {
				t.Fatalf("%+v, %d bytes: %v", f, n, err)
			}
			for i := range p {
				q := bytes.Clone(p)
				q[i] ^= 4
				_, rest, err := decodePDU(f, q)
				covered := i < headerLen+4 && f.headerDigest || i >= headerLen+4 && f.dataDigest && n > 0
				if covered && f.headerDigest == f.dataDigest && err == nil && len(rest) == 0 {
					t.Fatalf("%+v, %d bytes: flipped byte %d wasn't noticed", f, n, i)
				}
			}
			for i := range p {
				if _, _, err := decodePDU(f, p[:i]); err == nil {
					t.Fatalf("%+v: PDU cut to %d bytes was taken", f, i)
				}
			}
		}
	}
	big := encodePDU(t, framing{}, header{}, make([]byte, 65))
	if _, _, err := decodePDU(framing{maxData: 64}, big); err == nil {
		t.Error("65 bytes of data where 64 are allowed")
	}
}

func decodePDU(f framing, p []byte) (data, rest []byte, err error) {
	r := bytes.NewReader(p)
	var h header
	if err := f.readHeader(r, &h); err != nil {
		return nil, nil, err
	}
	data = make([]byte, h.dataLen())
	err = f.readData(r, &h, data)
	return data, p[len(p)-r.Len():], err
}

func TestSerialNumbers(t *testing.T) {
	for _, c := range []struct {
		a, b uint32
		want bool
	}{{2, 1, true}, {1, 2, false}, {1, 1, false}, {0, 0xffffffff, true}, {0xffffffff, 0, false}} {
		if after(c.a, c.b) != c.want {
			t.Errorf("after(%x, %x) is not %v", c.a, c.b, c.want)
		}
	}
}

func TestKeys(t *testing.T) {
	l := keyList{{"A", "1"}, {"B", "x=y"}, {"C", ""}}
	got, err := parseKeys(l.encode())
	if err != nil || cmp.Diff(l, got, cmp.AllowUnexported(keyValue{})) != "" {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"A=1", "A\x00", "=1\x00", "A=1\x00A=2\x00", strings.Repeat("k", 64) + "=1\x00"} {
		if l, err := parseKeys([]byte(bad)); err == nil {
			t.Errorf("%q became %v", bad, l)
		}
	}
	if _, err := parseKeys(make([]byte, maxText+1)); err == nil {
		t.Error("too long a text was taken")
	}
}

// TestCHAP: MD5 over identifier, secret, challenge, computed by md5sum.
func TestCHAP(t *testing.T) {
	for _, challenge := range []string{"0x0102030405060708", "0bAQIDBAUGBwg="} {
		got, err := chapAnswer(keyList{{"CHAP_A", "5"}, {"CHAP_I", "42"}, {"CHAP_C", challenge}}, "secret")
		if want := "0x0fcb39b8dbe0235c15c9f9ed09403d37"; err != nil || got != want {
			t.Errorf("%s: %s %v, want %s", challenge, got, err, want)
		}
	}
	for _, bad := range []keyList{
		{{"CHAP_A", "7"}, {"CHAP_I", "1"}, {"CHAP_C", "0x00"}},
		{{"CHAP_I", "256"}, {"CHAP_C", "0x00"}},
		{{"CHAP_I", "1"}},
		{{"CHAP_C", "0x00"}},
		{{"CHAP_I", "1"}, {"CHAP_C", "xyz"}},
		{{"CHAP_I", "1"}, {"CHAP_C", "0x" + strings.Repeat("00", 1025)}},
	} {
		if got, err := chapAnswer(bad, "secret"); err == nil {
			t.Errorf("%v answered %s", bad, got)
		}
	}
}

// TestLoginMachine plays targets' sides of a login.
func TestLoginMachine(t *testing.T) {
	cfg := Config{Initiator: "iqn.a", Target: "iqn.b", User: "u", Secret: "s"}
	text := func(kv ...string) (l keyList) {
		for _, s := range kv {
			k, v, _ := strings.Cut(s, "=")
			l = append(l, keyValue{k, v})
		}
		return l
	}
	say := func(next byte, transit bool, kv ...string) loginStep {
		return loginStep{next: next, transit: transit, text: text(kv...).encode()}
	}
	full := say(3, true, "HeaderDigest=CRC32C", "DataDigest=None", "MaxRecvDataSegmentLength=65536", "ImmediateData=No")
	cut := full
	cut.text, cut.transit, cut.more = full.text[:20], false, true
	rest := full
	rest.text = full.text[20:]
	for _, c := range []struct {
		name    string
		user    string
		answers []loginStep
		err     string
	}{
		{"chap", "u", []loginStep{say(0, false, "AuthMethod=CHAP"), say(0, false, "CHAP_A=5", "CHAP_I=1", "CHAP_C=0x00"), say(1, true), full}, ""},
		{"none", "", []loginStep{say(1, true, "AuthMethod=None"), full}, ""},
		{"none offered with chap", "u", []loginStep{say(0, false, "AuthMethod=None"), say(1, true), full}, ""},
		{"continued", "", []loginStep{say(1, true), cut, rest}, ""},
		{"asks", "", []loginStep{say(1, true), say(1, false, "X-odd=1", "TargetAlias=x"), full}, ""},
		{"chap wanted", "", []loginStep{say(0, false, "AuthMethod=CHAP")}, "none is given"},
		{"kerberos", "u", []loginStep{say(0, false, "AuthMethod=KRB5")}, "only CHAP is known"},
		{"refused", "u", []loginStep{{class: 2, detail: 1}}, "wrong CHAP user or password"},
		{"no room", "u", []loginStep{{class: 3, detail: 2}}, "out of resources"},
		{"new status", "u", []loginStep{{class: 7, detail: 9}}, "0x0709"},
		{"bad digest", "", []loginStep{say(1, true), say(3, true, "HeaderDigest=MD5")}, "expected None or CRC32C"},
		{"bad number", "", []loginStep{say(1, true), say(3, true, "MaxBurstLength=1")}, "expected a number"},
		{"bad stage", "", []loginStep{say(3, true)}, "goes to login stage 3"},
		{"moved", "", []loginStep{{class: 1, detail: 1, text: text("TargetAddress=h:1,1").encode()}}, "moved"},
		{"level 2", "", []loginStep{say(1, true), say(3, true, "ErrorRecoveryLevel=2")}, "level 2"},
		{"endless", "", func() (l []loginStep) {
			for range 99 {
				l = append(l, say(0, false))
			}
			return l
		}(), "doesn't come to an end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := cfg
			cfg.User = c.user
			m := newLogin(cfg, false, chapChallenge{})
			m.first()
			var done bool
			var err error
			for _, a := range c.answers {
				if done {
					t.Fatal("done too early")
				}
				if _, done, err = m.answer(a); err != nil {
					break
				}
			}
			if c.err == "" && (err != nil || !done) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Fatalf("done %v, error %v; want %q", done, err, c.err)
			}
			if c.err == "" && (!m.p.headerDigest || m.p.dataDigest || m.p.immediateLimit() != 0 || m.p.targetMaxRecv != 65536) {
				t.Errorf("negotiated %+v", m.p)
			}
		})
	}
}

func TestSense(t *testing.T) {
	fixed := make([]byte, 20)
	fixed[1], fixed[2], fixed[4], fixed[14], fixed[15] = 18, 0x70, 0xe, 0x1d, 0
	descriptor := []byte{0, 8, 0x72, 6, 0x2a, 0x05, 0, 0, 0, 0}
	for _, c := range []struct {
		in   []byte
		want Sense
		text string
	}{
		{fixed, Sense{Key: 0xe, Code: 0x1d}, "compared data differ (sense e/1d/00)"},
		{descriptor, Sense{Key: 6, Code: 0x2a, Qualifier: 5}, "registration was removed by another host"},
		{[]byte{0, 8, 0x73, 3, 0x0c, 0, 0, 0, 0, 0}, Sense{Key: 3, Code: 0x0c, Deferred: true}, "an earlier command failed: medium error"},
		{nil, Sense{}, "target failed the command"},
		{[]byte{0, 200, 0x70}, Sense{}, "target failed the command"},
	} {
		if got := parseSense(c.in); got != c.want || !strings.Contains(got.String(), c.text) {
			t.Errorf("% x: %+v, %s", c.in, got, got)
		}
	}
}

func TestCommandError(t *testing.T) {
	for _, c := range []struct {
		e  CommandError
		is error
	}{
		{CommandError{"WRITE", statusConflict, Sense{}}, ErrReservationConflict},
		{CommandError{"X", statusCheckCondition, Sense{Key: 5, Code: 0x20}}, ErrUnsupported},
		{CommandError{"X", statusCheckCondition, Sense{Key: 5, Code: 0x21}}, ErrRange},
		{CommandError{"X", statusTaskAborted, Sense{}}, ErrUnknownOutcome},
	} {
		for _, e := range []error{ErrReservationConflict, ErrUnsupported, ErrRange, ErrUnknownOutcome} {
			if errors.Is(&c.e, e) != (e == c.is) {
				t.Errorf("%v is %v: wrong", &c.e, e)
			}
		}
	}
}

// TestFullStatus decodes TransportIDs of three dialects.
func TestFullStatus(t *testing.T) {
	entry := func(key uint64, holder byte, id []byte) []byte {
		b := make([]byte, 24)
		binary.BigEndian.PutUint64(b, key)
		b[12] = holder
		binary.BigEndian.PutUint32(b[20:], uint32(len(id)))
		return append(b, id...)
	}
	standard := append([]byte{0x45, 0, 0, 28}, "iqn.x:a,i,0x800000000001\x00\x00\x00\x00"...)
	nameOnly := append([]byte{0x05, 0, 0, 8}, "iqn.x:b\x00"...)
	list := bytes.Join([][]byte{entry(1, 1, standard), entry(2, 0, nameOnly), entry(3, 0, []byte("iqn.x:c,i,0x8001"))}, nil)
	b := append([]byte{0, 0, 0, 9, 0, 0, 0, byte(len(list))}, list...)
	got, gen, err := parseFullStatus(b)
	want := []Registration{
		{1, Port{Initiator: "iqn.x:a", ISID: [6]byte{0x80, 0, 0, 0, 0, 1}}, true},
		{2, Port{Initiator: "iqn.x:b", AnyISID: true}, false},
		{3, Port{Initiator: "iqn.x:c", ISID: [6]byte{4: 0x80, 5: 1}}, false},
	}
	if err != nil || gen != 9 || cmp.Diff(want, got) != "" {
		t.Errorf("%v %d %s", err, gen, cmp.Diff(want, got))
	}
	for i := 8; i < len(b); i++ {
		if _, _, err := parseFullStatus(b[:i]); err == nil {
			t.Errorf("cut to %d bytes: taken", i)
		}
	}
}

func FuzzPDU(f *testing.F) {
	f.Add(encodePDU(f, framing{}, header{0: byte(opDataIn)}, []byte("abc")), false, false)
	f.Add(encodePDU(f, framing{headerDigest: true, dataDigest: true}, header{0: byte(opR2T)}, []byte("abcd")), true, true)
	f.Fuzz(func(t *testing.T, p []byte, hd, dd bool) {
		fr := framing{headerDigest: hd, dataDigest: dd, maxData: 4096}
		for len(p) > 0 {
			data, rest, err := decodePDU(fr, p)
			if err != nil {
				return
			}
			if len(data) > 4096 {
				t.Fatal("limit")
			}
			p = rest
		}
	})
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte("AuthMethod=CHAP\x00CHAP_I=1\x00CHAP_C=0x00\x00"))
	f.Add([]byte{0, 18, 0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0})
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add(append([]byte{0x45, 0, 0, 24}, "iqn.x:a,i,0x800000000001"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := parseKeys(b); err == nil {
			again, err := parseKeys(l.encode())
			if err != nil || len(again) != len(l) {
				t.Fatalf("%v became %v, %v", l, again, err)
			}
			_, _ = chapAnswer(l, "s")
			p := defaultParams()
			if p.apply(l) == nil && (p.targetMaxRecv < 512 || p.immediateLimit() < 0 || p.maxBurst < 512) {
				t.Fatalf("%+v", p)
			}
			m := newLogin(Config{User: "u", Secret: "s", TargetSecret: "t"}, false, chapChallenge{})
			m.first()
			for range 3 {
				_, _, _ = m.answer(loginStep{next: 1, transit: len(b)%2 == 0, text: b})
			}
		}
		_ = parseSense(b).String()
		_, _ = parseCapacity16(b)
		_, _ = parseCapacity10(b)
		_, _ = parseInquiry(b)
		if body, err := vitalPage(0xb0, b); err == nil {
			parseBlockLimits(body)
		}
		if keys, _, _, err := parseKeysIn(b); err == nil && len(keys)*8 > len(b) {
			t.Fatal("more keys than bytes")
		}
		_, _, _ = parseReservation(b)
		_, _, _ = parseFullStatus(b)
		_ = parseTransportID(b)
	})
}
