// Package kernel holds the hosts' Linux kernel, after gokrazy's convention for
// kernel packages: it has no code, its directory has the files.
//
// # Place
//
// config.json names it as KernelPackage; gokrazy's packer takes vmlinuz and
// cmdline.txt from here (and would take lib/modules, but there are no modules).
// hvd/kvm is the user of what the patches add. It imports nothing of ours.
//
// # Files
//
//	vmlinuz        the kernel, an x86-64 bzImage with an EFI stub
//	cmdline.txt    its command line; the packer puts the root partition's UUID
//	               in the place of /dev/sda2 and the consoles in front
//	config.txt     unused on servers; the packer asks for it
//	duet.config    the configuration, as a fragment over "make tinyconfig"
//	patches/       what is changed in the source, each explained in its header:
//	  0001         KVM counts traps and derives time-stamps (record and replay)
//	  0002         KVM under QEMU's interpreter: two bugs of its SVM worked around
//	build.sh       rebuilds vmlinuz
//
// Linux is under the GPL, version 2; its source is the distribution's package
// with these patches.
//
// # Rebuilding
//
// "build.sh" takes the distribution's source package linux-source-6.12, applies
// the patches, merges the fragment, fails by name if a line of it did not hold,
// and says how long it took. It names the packages that it misses.
//
// # What KVM's user sees
//
// Patch 0001 adds arch/x86/kvm/duet.h: capability 0x5252, the exits 0x52 (a
// read of the time-stamp) and 0x53 (a counted trap), and a block of counters
// in the vCPU's run page at offset 3072. All fields are little-endian u64:
//
//	3072  traps      counted traps
//	3080  stop       exit as soon as traps >= stop
//	3088  tsc_base   value of a read = tsc_base + min(++tsc_reads*tsc_step, tsc_cap)
//	3096  tsc_step
//	3104  tsc_reads
//	3112  tsc_cap
//	3120  tsc_fresh  host TSC from which a read exits; 0 is never
//	3128  n[4]       by kind: CR3, page fault, time-stamp, spurious
package kernel
