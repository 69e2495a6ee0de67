package pair

import (
	"errors"
	"testing"
)

func sample() Message {
	return Message{
		VM: UUID{1, 2, 15: 16}, From: 0xa, Incarnation: 1 << 63, Seq: 7, Role: Consuming, VolumeLost: true, Ready: true, Drained: true,
		Epoch: 9, Seed: Seed{3, 4}, Received: 5, Verified: 6, Successor: 8,
	}
}

func TestMessageLayout(t *testing.T) {
	m := sample()
	b := m.Encode()
	if len(b) != MessageSize || b[0] != 2 || b[1] != 7 || b[17] != 16 || b[25] != 0xa || b[26] != 0x80 ||
		b[41] != 7 || b[42] != byte(Consuming) || b[50] != 9 || b[58] != 3 || b[66] != 4 || b[74] != 5 || b[82] != 6 || b[90] != 8 {
		t.Fatalf("layout changed: % x", b)
	}
	if got, err := Decode(b); err != nil || got != m {
		t.Fatalf("%+v became %+v, %v", m, got, err)
	}
}

func TestMessageRefusals(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"short":          func(b []byte) []byte { return b[:len(b)-1] },
		"long":           func(b []byte) []byte { return append(b, 0) },
		"other version":  func(b []byte) []byte { b[0] = 1; return b },
		"unknown flag":   func(b []byte) []byte { b[1] = 8; return b },
		"no role":        func(b []byte) []byte { b[42] = 0; return b },
		"unknown role":   func(b []byte) []byte { b[42] = byte(roles); return b },
		"nothing at all": func([]byte) []byte { return nil },
	} {
		if _, err := Decode(change(sample().Encode())); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecode: no bytes panic, and what decodes has that one encoding.
func FuzzDecode(f *testing.F) {
	f.Add(sample().Encode())
	f.Add(make([]byte, MessageSize))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := Decode(b); err == nil && string(m.Encode()) != string(b) {
			t.Fatalf("%+v has two encodings", m)
		}
	})
}
