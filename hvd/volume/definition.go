package volume

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"strings"
)

// AutoSlot lets Create choose a free slot.
const AutoSlot = -1

// Levels of the output rule.
const (
	OutputVerified = "verified"
	OutputReceived = "received"
)

// KernelUntouched boots the guest's kernel as it is. Otherwise it is kept from
// looking at accessed bits, where that is known how to (hvd/boot/young).
const KernelUntouched = "untouched"

// Definition says what a virtual machine is made of. Its JSON form is what
// users write and what is on the volume.
type Definition struct {
	// Name has 1 to 32 of a-z, 0-9 and '-', and begins with a letter.
	Name string `json:"name"`
	// UUID identifies the VM. Create makes one if it is empty.
	UUID string `json:"uuid"`
	// Slot chooses the arbiter block, 0 to 63, or AutoSlot.
	Slot int `json:"slot"`
	// MemoryMiB is the guest's memory, 32 MiB to 1 TiB.
	MemoryMiB int `json:"memory_mib"`
	// MAC is the address of the network interface. Create derives one from the
	// UUID if it is empty.
	MAC string `json:"mac"`
	// CID is the vsock address, from 3 on. Create takes 3 + Slot if it is 0.
	CID uint32 `json:"cid"`
	// Disks, in the order in which the guest sees them; 1 to 16.
	Disks []DiskDef `json:"disks"`
	// Output is OutputVerified (also when empty) or OutputReceived.
	Output string `json:"output"`
	// Kernel is empty or KernelUntouched.
	Kernel string `json:"kernel,omitempty"`
	// Cmdline is appended to the kernel's command line.
	Cmdline string `json:"cmdline,omitempty"`
	// Unprotected says that a user wants the VM to run without a secondary.
	Unprotected bool `json:"unprotected,omitempty"`
}

// DiskDef is a virtual disk.
type DiskDef struct {
	// Name has 1 to 32 of a-z, 0-9 and '-'.
	Name string `json:"name"`
	// SizeBytes is a multiple of 4096, from 1 MiB on.
	SizeBytes uint64 `json:"size_bytes"`
	// State is empty for a disk that can be used, or DiskNew or DiskPartial.
	// Create and Fill set it.
	State string `json:"state,omitempty"`
}

// States of a disk that no guest may see.
const (
	// DiskNew may still hold another disk's former data.
	DiskNew = "new"
	// DiskPartial was to be filled, which hasn't ended, or was broken off.
	DiskPartial = "partial"
)

// Ready fails with ErrNotReady, in one line, if the disk can't be used.
func (k DiskDef) Ready(vm string) error {
	switch k.State {
	case "":
		return nil
	case DiskNew:
		return fmt.Errorf("disk %s of VM %s %w: it is being filled with zeros", k.Name, vm, ErrNotReady)
	}
	return fmt.Errorf("disk %s of VM %s %w: an import or copy onto it hasn't ended; if none is under way, do it again, or delete the disk", k.Name, vm, ErrNotReady)
}

// Ready fails with ErrNotReady if one of the VM's disks can't be used.
func (d Definition) Ready() error {
	for _, k := range d.Disks {
		if err := k.Ready(d.Name); err != nil {
			return err
		}
	}
	return nil
}

const maxDisks = 16

// ParseDefinition decodes a definition from JSON. Unknown fields are refused by
// name. A slot that isn't mentioned is AutoSlot.
func ParseDefinition(text []byte) (Definition, error) {
	if len(text) > 1<<20 {
		return Definition{}, fmt.Errorf("%w: %d bytes", ErrInvalid, len(text))
	}
	d := Definition{Slot: AutoSlot}
	if err := decodeStrict(text, &d); err != nil {
		if d.Name != "" {
			return Definition{}, fmt.Errorf("VM %.40q: %w", d.Name, err)
		}
		return Definition{}, err
	}
	return d, nil
}

// complete fills in what Create chooses.
func (d Definition) complete(others []Definition) (Definition, error) {
	if d.UUID == "" {
		d.UUID = strings.ToLower(randomGUID().String())
	}
	if d.Slot == AutoSlot {
		taken := map[int]bool{}
		for _, o := range others {
			taken[o.Slot] = true
		}
		for d.Slot = 0; taken[d.Slot]; d.Slot++ {
		}
		if d.Slot >= MaxVMs {
			return d, fmt.Errorf("%w: it has %d VMs, which is the limit", ErrFull, MaxVMs)
		}
	}
	if d.MAC == "" {
		sum := sha256.Sum256([]byte("duet mac " + d.UUID))
		sum[0] = sum[0]&^1 | 2 // unicast, locally administered
		d.MAC = net.HardwareAddr(sum[:6]).String()
	}
	if d.CID == 0 {
		d.CID = 3 + uint32(d.Slot)
	}
	if d.Output == "" {
		d.Output = OutputVerified
	}
	return d, nil
}

// check tests a complete definition by itself.
func (d Definition) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: VM %.40q: %s", ErrInvalid, d.Name, fmt.Sprintf(format, args...))
	}
	if !validName(d.Name) || d.Name[0] < 'a' {
		return bad("name: expected 1 to 32 of a-z, 0-9 and '-', a letter first")
	}
	if _, err := ParseGUID(d.UUID); err != nil {
		return bad("uuid: %v", err)
	}
	if d.Slot < 0 || d.Slot >= MaxVMs {
		return bad("slot %d: expected 0 to %d", d.Slot, MaxVMs-1)
	}
	if d.MemoryMiB < 32 || d.MemoryMiB > 1<<20 {
		return bad("memory_mib %d: expected 32 to %d", d.MemoryMiB, 1<<20)
	}
	mac, err := net.ParseMAC(d.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || isZero(mac) {
		return bad("mac %.40q: expected a unicast address such as 02:12:34:56:78:9a", d.MAC)
	}
	if d.CID < 3 || d.CID == 0xffffffff {
		return bad("cid %d: expected 3 to 4294967294", d.CID)
	}
	if d.Output != OutputVerified && d.Output != OutputReceived {
		return bad("output %.40q: expected %q or %q", d.Output, OutputVerified, OutputReceived)
	}
	if d.Kernel != "" && d.Kernel != KernelUntouched {
		return bad("kernel %.40q: expected %q, or nothing", d.Kernel, KernelUntouched)
	}
	if len(d.Cmdline) > 2048 || strings.ContainsFunc(d.Cmdline, func(r rune) bool { return r < ' ' || r > '~' }) {
		return bad("cmdline: expected up to 2048 printable characters")
	}
	if len(d.Disks) < 1 || len(d.Disks) > maxDisks {
		return bad("%d disks: expected 1 to %d", len(d.Disks), maxDisks)
	}
	names := map[string]bool{}
	for _, k := range d.Disks {
		switch {
		case !validName(k.Name):
			return bad("disk %.40q: name: expected 1 to 32 of a-z, 0-9 and '-'", k.Name)
		case names[k.Name]:
			return bad("two disks are called %q", k.Name)
		case k.SizeBytes < 1<<20 || k.SizeBytes%4096 != 0 || k.SizeBytes > 1<<60:
			return bad("disk %q: size_bytes %d: expected a multiple of 4096, at least 1 MiB", k.Name, k.SizeBytes)
		case k.State != "" && k.State != DiskNew && k.State != DiskPartial:
			return bad("disk %q: state %.40q is not known", k.Name, k.State)
		}
		names[k.Name] = true
	}
	return nil
}

// conflict tests a definition against another one on the same volume.
func (d Definition) conflict(o Definition) error {
	for _, c := range []struct {
		what string
		same bool
		v    any
	}{
		{"name", d.Name == o.Name, d.Name},
		{"UUID", strings.EqualFold(d.UUID, o.UUID), d.UUID},
		{"slot", d.Slot == o.Slot, d.Slot},
		{"MAC address", strings.EqualFold(d.MAC, o.MAC), d.MAC},
		{"CID", d.CID == o.CID, d.CID},
	} {
		if c.same {
			return fmt.Errorf("VM %q: %s %v %w by VM %q", d.Name, c.what, c.v, ErrExists, o.Name)
		}
	}
	return nil
}

func validName(s string) bool {
	return len(s) >= 1 && len(s) <= 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// partitionID derives the GUID of a disk's partition (in the form of UUID
// version 8, RFC 9562).
func partitionID(volume GUID, vm, disk string) GUID {
	sum := sha256.Sum256(fmt.Appendf(nil, "duet disk %s %s %s", volume, strings.ToLower(vm), disk))
	g := GUID(sum[:16])
	g[6], g[8] = g[6]&0xf|0x80, g[8]&0x3f|0x80
	return g
}

// randomGUID is a UUID of version 4.
func randomGUID() (g GUID) {
	if _, err := rand.Read(g[:]); err != nil {
		panic(err) // documented never to happen
	}
	g[6], g[8] = g[6]&0xf|0x40, g[8]&0x3f|0x80
	return g
}
