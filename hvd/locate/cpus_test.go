package locate

import "testing"

func TestEventOf(t *testing.T) {
	for _, c := range []struct {
		vendor        string
		family, model uint32
		config, skid  uint64
		lockMap       bool
	}{
		{"GenuineIntel", 6, 0x55, 0x1c4, 125, false},
		{"GenuineIntel", 6, 0x8f, 0x11c4, 125, false},
		{"AuthenticAMD", 0x17, 0x31, 0xd1, 10_000, true},
		{"AuthenticAMD", 0x19, 0x11, 0xd1, 10_000, true},
		{"GenuineIntel", 6, 0x97, 0, 0, false}, // two kinds of cores
		{"GenuineIntel", 15, 0x55, 0, 0, false},
		{"AuthenticAMD", 0x15, 2, 0, 0, false},
		{"HygonGenuine", 0x18, 0, 0, 0, false},
	} {
		e, err := EventOf(c.vendor, c.family, c.model)
		if (err == nil) != (c.config != 0) || e.Config != c.config || e.Skid != c.skid || e.SpecLockMap != c.lockMap {
			t.Errorf("%s %#x %#x: %+v, %v", c.vendor, c.family, c.model, e, err)
		}
	}
	for m := range intelOld {
		if intelNew[m] != "" {
			t.Errorf("model %#x is in both tables", m)
		}
	}
}
