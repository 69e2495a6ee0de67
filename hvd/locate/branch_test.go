package locate

import "testing"

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		name             string
		code             []byte
		long             bool
		branch, repeated bool
	}{
		{"jnz short", []byte{0x75, 0xfe}, true, true, false},
		{"jmp short", []byte{0xeb, 0xfe}, true, false, false},
		{"jz near", []byte{0x0f, 0x84, 0, 0, 0, 0}, true, true, false},
		{"setz", []byte{0x0f, 0x94, 0xc0}, true, false, false},
		{"predicted jnz", []byte{0x3e, 0x75, 0xfe}, true, true, false},
		{"bnd jnz", []byte{0xf2, 0x75, 0xfe}, true, true, false},
		{"loop", []byte{0xe2, 0xfe}, true, true, false},
		{"jrcxz", []byte{0xe3, 0}, true, true, false},
		{"jecxz", []byte{0x67, 0xe3, 0}, true, true, false},
		{"call", []byte{0xe8, 0, 0, 0, 0}, true, false, false},
		{"inc eax, then jnz, 32 bits", []byte{0x40, 0x75, 0xfd}, false, false, false},
		{"rex, jnz", []byte{0x40, 0x75, 0xfd}, true, true, false},
		{"rep movsb", []byte{0xf3, 0xa4}, true, false, true},
		{"rep movsq", []byte{0xf3, 0x48, 0xa5}, true, false, true},
		{"repne scasb", []byte{0xf2, 0xae}, true, false, true},
		{"movsb", []byte{0xa4}, true, false, false},
		{"pause", []byte{0xf3, 0x90}, true, false, false},
		{"nothing", nil, true, false, false},
		{"prefixes alone", []byte{0xf3, 0x66}, true, false, false},
		{"rex alone", []byte{0x48}, true, false, false},
	} {
		if got := IsBranch(c.code, c.long); got != c.branch {
			t.Errorf("%s: a branch %t", c.name, got)
		}
		if got := IsRepeated(c.code, c.long); got != c.repeated {
			t.Errorf("%s: repeated %t", c.name, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0xf3, 0x48, 0xa5}, true)
	f.Add([]byte{0x66, 0x0f}, false)
	f.Fuzz(func(t *testing.T, code []byte, long bool) {
		if IsBranch(code, long) && IsRepeated(code, long) {
			t.Errorf("%x is both", code)
		}
	})
}
