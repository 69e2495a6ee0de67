package locate

import "fmt"

// Event is how a processor counts retired conditional branches.
type Event struct {
	Name   string // of the microarchitecture
	Config uint64 // of a raw event of perf_event_open: event, umask << 8
	Skid   uint64 // the most events that an overflow comes late
	// SpecLockMap says that the count is exact only with the processor's
	// SpecLockMap switched off (MSR C0011020h, bit 54): a locked instruction that
	// is speculated and undone counts its branches twice.
	SpecLockMap bool
}

const (
	intelSkid = 125
	amdSkid   = 10_000
)

// Models of Intel's family 6, by event: since Ice Lake, C4h counts conditional
// branches with umask 11h, before with 01h.
var (
	intelOld = map[uint32]string{
		0x3c: "Haswell", 0x3f: "Haswell", 0x45: "Haswell", 0x46: "Haswell",
		0x3d: "Broadwell", 0x47: "Broadwell", 0x4f: "Broadwell", 0x56: "Broadwell",
		0x4e: "Skylake", 0x55: "Skylake", 0x5e: "Skylake", 0x8e: "Kaby Lake", 0x9e: "Kaby Lake",
		0xa5: "Comet Lake", 0xa6: "Comet Lake",
	}
	intelNew = map[uint32]string{
		0x6a: "Ice Lake", 0x6c: "Ice Lake", 0x7e: "Ice Lake", 0x8c: "Tiger Lake", 0x8d: "Tiger Lake",
		0xa7: "Rocket Lake", 0x8f: "Sapphire Rapids", 0xcf: "Emerald Rapids",
	}
	amd = map[uint32]string{0x17: "Zen or Zen 2", 0x19: "Zen 3 or Zen 4", 0x1a: "Zen 5"}
)

// EventOf is the event of a processor, by the vendor string, display family and
// display model of CPUID. Processors with two kinds of cores aren't in the
// table: the kernel moves a thread between them.
//
// Sources: Intel SDM volume 3, "Performance Monitoring Events"; AMD PPR of the
// families 17h, 19h and 1Ah, event D1h; the skids are those that rr uses.
func EventOf(vendor string, family, model uint32) (Event, error) {
	switch vendor {
	case "GenuineIntel":
		if name := intelOld[model]; family == 6 && name != "" {
			return Event{Name: name, Config: 0x01c4, Skid: intelSkid}, nil
		}
		if name := intelNew[model]; family == 6 && name != "" {
			return Event{Name: name, Config: 0x11c4, Skid: intelSkid}, nil
		}
	case "AuthenticAMD":
		if name := amd[family]; name != "" {
			return Event{Name: name, Config: 0xd1, Skid: amdSkid, SpecLockMap: true}, nil
		}
	}
	return Event{}, fmt.Errorf("no event for conditional branches is known for this processor (%s, family %#x, model %#x)",
		vendor, family, model)
}
