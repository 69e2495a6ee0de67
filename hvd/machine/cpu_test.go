package machine

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm"
)

// branded are the leaves of a processor with a name of up to 48 bytes.
func branded(name string) []kvm.CPUID {
	var text [48]byte
	copy(text[:], name)
	leaves := []kvm.CPUID{{Function: 0, EAX: 0xd}, {Function: 1, EAX: 0x800f12, ECX: 1}}
	for i := range 3 {
		at := func(n int) uint32 { return binary.LittleEndian.Uint32(text[16*i+4*n:]) }
		leaves = append(leaves, kvm.CPUID{Function: 0x80000002 + uint32(i), EAX: at(0), EBX: at(1), ECX: at(2), EDX: at(3)})
	}
	return leaves
}

func TestDescribe(t *testing.T) {
	one := describe(branded("  AMD EPYC 7313P 16-Core Processor  "))
	if want := "AMD EPYC 7313P 16-Core Processor"; one.Name != want {
		t.Errorf("the name is %q, want %q", one.Name, want)
	}
	if len(one.Fingerprint) != 12 {
		t.Errorf("the fingerprint %q has not 12 digits", one.Fingerprint)
	}
	if full := describe(branded("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz ab")); full.Name != "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz ab" {
		t.Errorf("a name of 48 bytes becomes %q", full.Name)
	}
	if again := describe(branded("  AMD EPYC 7313P 16-Core Processor  ")); again != one {
		t.Errorf("the same leaves give %+v and %+v", one, again)
	}
	if none := describe(nil); none.Name != "" {
		t.Errorf("no leaves give the name %q", none.Name)
	}
}

// Each register of each leaf counts.
func TestFingerprintSeesEverything(t *testing.T) {
	leaves := branded("x")
	first := describe(leaves).Fingerprint
	for i := range leaves {
		for name, change := range map[string]func(*kvm.CPUID){
			"function": func(l *kvm.CPUID) { l.Function ^= 1 << 8 }, "index": func(l *kvm.CPUID) { l.Index++ },
			"flags": func(l *kvm.CPUID) { l.Flags ^= 1 }, "eax": func(l *kvm.CPUID) { l.EAX ^= 1 << 31 },
			"ebx": func(l *kvm.CPUID) { l.EBX ^= 1 }, "ecx": func(l *kvm.CPUID) { l.ECX ^= 1 << 7 }, "edx": func(l *kvm.CPUID) { l.EDX ^= 2 },
		} {
			other := slices.Clone(leaves)
			change(&other[i])
			if describe(other).Fingerprint == first {
				t.Errorf("%s of leaf %#x doesn't count", name, leaves[i].Function)
			}
		}
	}
	if describe(leaves[:len(leaves)-1]).Fingerprint == first {
		t.Error("a leaf less doesn't count")
	}
}
