package machine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/vcpu"
)

// CPU is a host's processor as a guest sees it. Both hosts of a pair need equal
// ones: an instruction that one of them lacks, or does otherwise, would end
// lockstep.
type CPU struct {
	Name        string // the brand string, CPUID leaves 0x80000002 to 4
	Fingerprint string // SHA-256 of all leaves that the guest sees, its first 12 hexadecimal digits
}

// HostCPU describes this host's processor.
func HostCPU(sys *kvm.System) (CPU, error) {
	host, err := sys.SupportedCPUID()
	if err != nil {
		return CPU{}, err
	}
	return describe(vcpu.Leaves(host)), nil
}

// describe makes a CPU of the leaves that a guest sees.
func describe(leaves []kvm.CPUID) CPU {
	var name [3 * 16]byte
	sum := sha256.New()
	for _, l := range leaves {
		var b [7 * 4]byte
		for i, v := range [7]uint32{l.Function, l.Index, l.Flags, l.EAX, l.EBX, l.ECX, l.EDX} {
			binary.LittleEndian.PutUint32(b[4*i:], v)
		}
		sum.Write(b[:])
		if n := l.Function - 0x80000002; n < 3 {
			copy(name[16*n:], b[12:])
		}
	}
	brand, _, _ := bytes.Cut(name[:], []byte{0})
	return CPU{
		Name:        strings.Join(strings.Fields(string(brand)), " "),
		Fingerprint: hex.EncodeToString(sum.Sum(nil)[:6]),
	}
}
