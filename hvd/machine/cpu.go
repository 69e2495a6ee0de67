package machine

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/klauspost/cpuid/v2"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/vcpu"
)

// CPU is a host's processor as a guest sees it. Both hosts of a pair need equal
// ones: an instruction that one of them lacks, or does otherwise, would end
// lockstep.
type CPU struct {
	Name        string // the host's brand string, for people; KVM shows guests none
	Fingerprint string // SHA-256 of all leaves that the guest sees, its first 12 hexadecimal digits
}

// HostCPU describes this host's processor.
func HostCPU(sys *kvm.System) (CPU, error) {
	host, err := sys.SupportedCPUID()
	if err != nil {
		return CPU{}, err
	}
	return CPU{Name: cpuid.CPU.BrandName, Fingerprint: fingerprint(vcpu.Leaves(host))}, nil
}

// fingerprint tells sets of leaves apart.
func fingerprint(leaves []kvm.CPUID) string {
	sum := sha256.New()
	for _, l := range leaves {
		var b [7 * 4]byte
		for i, v := range [7]uint32{l.Function, l.Index, l.Flags, l.EAX, l.EBX, l.ECX, l.EDX} {
			binary.LittleEndian.PutUint32(b[4*i:], v)
		}
		sum.Write(b[:])
	}
	return hex.EncodeToString(sum.Sum(nil)[:6])
}
