package machine

import (
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm"
)

// Each register of each leaf counts, and nothing else does.
func TestFingerprint(t *testing.T) {
	leaves := []kvm.CPUID{{Function: 0, EAX: 0xd}, {Function: 1, EAX: 0x800f12, ECX: 1}, {Function: 7, Flags: 1, EBX: 1 << 7}}
	first := fingerprint(leaves)
	if len(first) != 12 || fingerprint(slices.Clone(leaves)) != first {
		t.Errorf("the fingerprint %q has not 12 digits, or equal leaves have two", first)
	}
	for i := range leaves {
		for name, change := range map[string]func(*kvm.CPUID){
			"function": func(l *kvm.CPUID) { l.Function ^= 1 << 8 }, "index": func(l *kvm.CPUID) { l.Index++ },
			"flags": func(l *kvm.CPUID) { l.Flags ^= 1 }, "eax": func(l *kvm.CPUID) { l.EAX ^= 1 << 31 },
			"ebx": func(l *kvm.CPUID) { l.EBX ^= 1 }, "ecx": func(l *kvm.CPUID) { l.ECX ^= 1 << 7 }, "edx": func(l *kvm.CPUID) { l.EDX ^= 2 },
		} {
			other := slices.Clone(leaves)
			change(&other[i])
			if fingerprint(other) == first {
				t.Errorf("%s of leaf %#x doesn't count", name, leaves[i].Function)
			}
		}
	}
	if fingerprint(leaves[:2]) == first {
		t.Error("a leaf less doesn't count")
	}
}
