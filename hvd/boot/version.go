package boot

import (
	"cmp"
	"strings"
)

// compareVersions orders kernel versions as people do: 6.1.0-9 before
// 6.1.0-10, 6.2-rc1 before 6.2. Runs of digits compare as numbers and the rest
// as text, as Debian's dpkg does.
func compareVersions(a, b string) int {
	a, b = candidate(a), candidate(b)
	for a != "" || b != "" {
		var x, y string
		x, a = cut(a, false)
		y, b = cut(b, false)
		if c := compareText(x, y); c != 0 {
			return c
		}
		x, a = cut(a, true)
		y, b = cut(b, true)
		x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
			return c
		}
	}
	return 0
}

// candidate marks release candidates with a tilde, which sorts before the end.
func candidate(v string) string { return strings.ReplaceAll(v, "-rc", "~rc") }

// cut splits off the longest start of digits, or of anything else.
func cut(s string, digits bool) (head, tail string) {
	for i := range len(s) {
		if (s[i] >= '0' && s[i] <= '9') != digits {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// compareText orders "~" before the end, the end before letters, and letters
// before other signs.
func compareText(a, b string) int {
	rank := func(s string, i int) int {
		switch {
		case i >= len(s):
			return 0
		case s[i] == '~':
			return -1
		case s[i]|0x20 >= 'a' && s[i]|0x20 <= 'z':
			return int(s[i])
		}
		return int(s[i]) + 256
	}
	for i := range max(len(a), len(b)) {
		if c := cmp.Compare(rank(a, i), rank(b, i)); c != 0 {
			return c
		}
	}
	return 0
}
