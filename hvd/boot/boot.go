// Package boot starts a Linux guest from its own disk: it finds the kernel and
// initrd in the guest's file system, and puts them into guest memory with all
// that a boot loader and a firmware would have left there.
//
// # Place
//
// hvd/machine calls Find on the virtual disk and Load before the first
// instruction; both are functions of their inputs. Of ours it imports hvd/mem
// and its own parts: ext4, partition and bzimage.
//
// # Layout of guest memory at the first instruction
//
//	0x500             global descriptor table: 10h code, 18h data
//	0x7000            boot parameters (struct boot_params, the "zero page")
//	below 0x9000      stack
//	0x9000 .. 0xefff  page tables: the first 4 GiB mapped to themselves
//	0x20000           command line, ends with a zero byte
//	0x30000           setup data: the seed of the guest's random numbers
//	0xf0000 .. 1 MiB  ACPI tables
//	as linked         the kernel's segments; Debian's start at 16 MiB
//	end of low memory the initrd, its end rounded down to a page
//
// The protocol is the 64-bit one of the kernel's Documentation/arch/x86/boot.rst,
// entered not at the compressed image but at the ELF file inside it, so that
// neither decompression nor KASLR runs in the guest. So the kernel is where it was
// linked to, and can be changed there before it runs: package young does that, as
// a function of the kernel alone. What it changed is in memory, and a state
// transfer takes it to the other host.
package boot

import (
	"errors"

	"github.com/duet-ft/duet/hvd/boot/bzimage"
)

// Limits on what is read from a guest's disk, in bytes.
const (
	MaxKernel = 256 << 20
	MaxInitrd = 512 << 20
)

var (
	// ErrNoKernel says that the disk is readable and holds no kernel.
	ErrNoKernel = errors.New("no Linux kernel found on the disk")
	// ErrNoFileSystem says that nothing on the disk is a file system that can
	// be read here.
	ErrNoFileSystem = errors.New("no ext4 file system found on the disk")
	// ErrMemory says that the guest has too little memory for its own kernel.
	ErrMemory = errors.New("the guest has too little memory")
)

// Image is what a guest boots from.
type Image struct {
	Kernel  []byte // a bzImage or an ELF file, as installed
	Initrd  []byte // empty if there is none
	Root    string // kernel argument, "root=UUID=..." or "root=/dev/vda1"; empty if unknown
	Version string // what follows "vmlinuz-", such as 6.1.0-56-cloud-amd64
	Path    string // where the kernel was found, such as /boot/vmlinuz-6.1.0-56-cloud-amd64
	// Unclean says that the file system's journal wasn't empty. The journal
	// isn't replayed here: the guest does that.
	Unclean bool
}

// Unpack returns the ELF file inside a kernel image; an ELF file is returned as
// it is. See bzimage.
func Unpack(kernel []byte) ([]byte, error) { return bzimage.Unpack(kernel) }
