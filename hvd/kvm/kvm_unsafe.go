package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/hvd/mem"
)

// ioctl requests; the high half of those with an argument is its size.
const (
	getAPIVersion     = 0xAE00
	createVM          = 0xAE01
	checkExtension    = 0xAE03
	getVCPUMmapSize   = 0xAE04
	getSupportedCPUID = 0xC008AE05
	createVCPU        = 0xAE41
	getDirtyLog       = 0x4010AE42
	setUserMemory     = 0x4020AE46
	setTSSAddr        = 0xAE47
	run               = 0xAE80
	getRegs           = 0x8090AE81
	setRegs           = 0x4090AE82
	getSregs          = 0x8138AE83
	setSregs          = 0x4138AE84
	interrupt         = 0x4004AE86
	getMSRs           = 0xC008AE88
	setMSRs           = 0x4008AE89
	translate         = 0xC018AE85
	getTSCKHz         = 0xAEA3
	setCPUID2         = 0x4008AE90
	setGuestDebug     = 0x4048AE9B
	getEvents         = 0x8040AE9F
	setEvents         = 0x4040AEA0
	getDebugRegs      = 0x8080AEA1
	setDebugRegs      = 0x4080AEA2
	enableCap         = 0x4068AEA3
	getXSAVE          = 0x9000AEA4
	setXSAVE          = 0x5000AEA5
	getXCRs           = 0x8188AEA6
	setXCRs           = 0x4188AEA7
	clearDirtyLog     = 0xC018AEC0
	preFaultMemory    = 0xC040AED5
	setMSRFilter      = 0x4188AEC6
)

// ioctlPtr passes a pointer. It is pinned by being an argument of the call, as
// rule 4 of package unsafe allows.
func ioctlPtr(fd int, req uintptr, p unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(p)); e != 0 {
		return e
	}
	return nil
}

func ioctlInt(fd int, req, arg uintptr) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// System is the host's KVM.
type System struct{ fd int }

// Open opens /dev/kvm and checks that it is one that Duet can use. The error
// says what the host lacks.
func Open() (*System, error) {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, unusable("there is no /dev/kvm; switch virtualization (VT-x or SVM) on in the firmware set-up", err)
	}
	if err != nil {
		return nil, unusable("open /dev/kvm", err)
	}
	s := &System{fd}
	if v, err := ioctlInt(fd, getAPIVersion, 0); err != nil || v != 12 {
		s.Close()
		return nil, fmt.Errorf("this host can't run virtual machines: its KVM has version %d, want 12 (%v)", v, err)
	}
	return s, nil
}

// Close closes /dev/kvm; virtual machines made by it go on.
func (s *System) Close() error { return unix.Close(s.fd) }

// Supported are the flags of Duet's capability that this host has; 0 on a
// kernel without image/kernel's patches.
func (s *System) Supported() uint64 {
	n, err := ioctlInt(s.fd, checkExtension, capDuet)
	if err != nil {
		return 0
	}
	return uint64(n)
}

type cpuid2 struct {
	n, _    uint32
	entries [maxCPUID]CPUID
}

// SupportedCPUID lists the leaves that KVM and the host's CPU support.
func (s *System) SupportedCPUID() ([]CPUID, error) {
	c := &cpuid2{n: maxCPUID}
	if err := ioctlPtr(s.fd, getSupportedCPUID, unsafe.Pointer(c)); err != nil {
		return nil, fmt.Errorf("read the CPU's features: %w", err)
	}
	return append([]CPUID(nil), c.entries[:min(c.n, maxCPUID)]...), nil
}

// VM is a virtual machine.
type VM struct {
	sys   *System
	fd    int
	slots []mem.Region
	mem   *mem.Memory
	dirty []uint64 // TakeDirty's: a slot's bitmap
}

// NewVM makes a virtual machine with the given flags of Duet's capability and
// an MSR filter that lets the guest reach only allowed MSRs without an exit.
func (s *System) NewVM(m *mem.Memory, flags uint64, allowed []uint32) (*VM, error) {
	fd, err := ioctlInt(s.fd, createVM, 0)
	if err != nil {
		return nil, unusable("make a virtual machine", err)
	}
	v := &VM{sys: s, fd: fd, slots: m.Regions(), mem: m}
	for _, step := range []func() error{
		func() error { _, err := ioctlInt(fd, setTSSAddr, 0xfffbd000); return err },
		func() error { return v.enable(capDuet, flags) },
		func() error { return v.enable(capManualDirtyLog, 1) },
		func() error { return v.enable(capUserSpaceMSR, msrExitReasonFilter) },
		// Without it, KVM reports an exception that is still to be delivered as
		// one whose delivery has begun, and a restored CPU pushes other flags.
		func() error { return v.enable(capExceptionPayload, 1) },
		func() error { return v.filterMSRs(allowed) },
		func() error { return v.LogDirty(false) },
	} {
		if err := step(); err != nil {
			v.Close()
			return nil, unusable("set up a virtual machine (is this Duet's kernel?)", err)
		}
	}
	return v, nil
}

// Close lets go of the virtual machine; its CPU must be closed too.
func (v *VM) Close() error { return unix.Close(v.fd) }

func (v *VM) enable(capability uint32, arg uint64) error {
	c := struct {
		capability, flags uint32
		args              [4]uint64
		_                 [64]byte
	}{capability: capability, args: [4]uint64{arg}}
	if err := ioctlPtr(v.fd, enableCap, unsafe.Pointer(&c)); err != nil {
		return fmt.Errorf("enable capability %#x: %w", capability, err)
	}
	return nil
}

// filterMSRs denies all MSRs but allowed, which is in rising order. A filter
// has up to 16 ranges with a bitmap each; MSRs that lie within 2048 of one
// another share a range.
func (v *VM) filterMSRs(allowed []uint32) error {
	type msrRange struct {
		flags, n, base uint32
		_              uint32
		bitmap         *byte
	}
	var f struct {
		flags  uint32
		_      uint32
		ranges [16]msrRange
	}
	f.flags = 1 // KVM_MSR_FILTER_DEFAULT_DENY
	bitmaps := make([][]byte, 0, 16)
	next := 0
	for i := 0; i < len(allowed); {
		base := allowed[i] &^ 7
		if next == len(f.ranges) {
			return fmt.Errorf("MSR filter: more than %d ranges", len(f.ranges))
		}
		b := make([]byte, 256)
		for ; i < len(allowed) && allowed[i] >= base && allowed[i]-base < 2048; i++ {
			b[(allowed[i]-base)/8] |= 1 << ((allowed[i] - base) % 8)
		}
		bitmaps = append(bitmaps, b)
		f.ranges[next] = msrRange{flags: 3, n: 2048, base: base, bitmap: &b[0]}
		next++
	}
	err := ioctlPtr(v.fd, setMSRFilter, unsafe.Pointer(&f))
	runtime.KeepAlive(bitmaps)
	if err != nil {
		return fmt.Errorf("set the MSR filter: %w", err)
	}
	return nil
}

// LogDirty maps the guest's memory, with or without logging of the pages that
// the guest writes. Switching it on write-protects all pages.
func (v *VM) LogDirty(on bool) error {
	for slot, r := range v.slots {
		region := struct {
			slot, flags      uint32
			gpa, size, uaddr uint64
		}{uint32(slot), 0, r.Guest, r.Size, uint64(uintptr(unsafe.Pointer(&v.mem.Bytes()[r.Offset])))}
		if on {
			region.flags = 1
		}
		if err := ioctlPtr(v.fd, setUserMemory, unsafe.Pointer(&region)); err != nil {
			return fmt.Errorf("map %d bytes of guest memory at %#x: %w", r.Size, r.Guest, err)
		}
	}
	return nil
}

// TakeDirty merges the pages that the guest has written since the last call
// into set, one bit a page of the mapping, and write-protects them again. The
// virtual CPU must be stopped. One caller at a time.
func (v *VM) TakeDirty(set []uint64) error {
	for slot, r := range v.slots {
		pages := r.Size / mem.PageSize
		v.dirty = slices.Grow(v.dirty[:0], int(pages+63)/64)
		bits := v.dirty[:(pages+63)/64] // the kernel writes all of it
		get := struct {
			slot, _ uint32
			bitmap  *uint64
		}{uint32(slot), 0, &bits[0]}
		if err := ioctlPtr(v.fd, getDirtyLog, unsafe.Pointer(&get)); err != nil {
			return fmt.Errorf("read the dirty log: %w", err)
		}
		any := false
		first := r.Offset / mem.PageSize // a multiple of 64: the hole is at 3 GiB
		for i, w := range bits {
			if w != 0 {
				set[int(first/64)+i] |= w
				any = true
			}
		}
		if !any {
			continue
		}
		// num_pages must be a multiple of 64, or reach the end of the slot.
		cl := struct {
			slot, n uint32
			first   uint64
			bitmap  *uint64
		}{uint32(slot), uint32(pages), 0, &bits[0]}
		if err := ioctlPtr(v.fd, clearDirtyLog, unsafe.Pointer(&cl)); err != nil {
			return fmt.Errorf("clear the dirty log: %w", err)
		}
	}
	return nil
}

// VCPU is the virtual CPU of a VM. All methods but Kick and RequestStop belong
// to the thread that runs it.
type VCPU struct {
	fd       int
	page     []byte
	counters *Counters
	regs     *Regs
	debug    uint32 // KVM_GUESTDBG_*
}

// NewVCPU makes the VM's only virtual CPU.
func (v *VM) NewVCPU() (*VCPU, error) {
	fd, err := ioctlInt(v.fd, createVCPU, 0)
	if err != nil {
		return nil, unusable("make a virtual CPU", err)
	}
	size, err := ioctlInt(v.sys.fd, getVCPUMmapSize, 0)
	if err != nil {
		unix.Close(fd)
		return nil, unusable("size of the run page", err)
	}
	page, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, unusable("map the run page", err)
	}
	c := &VCPU{fd: fd, page: page}
	// Both point into the mapping, which outlives them: Close is the last call.
	c.counters = (*Counters)(unsafe.Pointer(&page[pageOfDuet]))
	c.regs = (*Regs)(unsafe.Pointer(&page[304]))
	*(*uint64)(unsafe.Pointer(&page[288])) = 1 // KVM_SYNC_X86_REGS
	c.counters.Stop = ^uint64(0)
	return c, nil
}

// Close frees the CPU.
func (c *VCPU) Close() error {
	err := unix.Munmap(c.page)
	return errors.Join(err, unix.Close(c.fd))
}

// PreFault maps size bytes of guest memory at addr, as if the guest had read
// them. From then on the dirty log has only pages that are written: KVM logs a
// page that it maps for the first time as written even when it is only read.
func (c *VCPU) PreFault(addr, size uint64) error {
	r := struct {
		gpa, size, flags uint64
		_                [5]uint64
	}{gpa: addr, size: size}
	for r.size > 0 {
		err := ioctlPtr(c.fd, preFaultMemory, unsafe.Pointer(&r))
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("map %d bytes of guest memory at %#x: %w", r.size, r.gpa, err)
		}
	}
	return nil
}

// Run enters the guest. It returns ErrInterrupted when the host interrupted
// it; else ExitReason tells why.
func (c *VCPU) Run() error {
	_, err := ioctlInt(c.fd, run, 0)
	if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		return ErrInterrupted
	}
	if err != nil {
		return fmt.Errorf("run the virtual CPU: %w", err)
	}
	return nil
}

// Settle finishes a pending port, memory, MSR or time-stamp access without
// running the guest, so that State is that between two instructions, and
// refreshes Ready. An access that goes on with another exit is an error.
func (c *VCPU) Settle() error {
	exited, err := c.Finish()
	if err == nil && exited {
		return fmt.Errorf("settling the virtual CPU: it left with exit %d", c.ExitReason())
	}
	return err
}

// Finish is Settle for an instruction that may make several exits, such as a
// repeated one that reads a device's memory: exited says that the next one has
// come, which ExitReason tells of.
func (c *VCPU) Finish() (exited bool, err error) {
	c.SetImmediateExit(true)
	err = c.Run()
	c.SetImmediateExit(false)
	if errors.Is(err, ErrInterrupted) {
		return false, nil
	}
	return err == nil, err
}

// SetImmediateExit makes the next or current Run return at once. With Kick, it
// is what another thread calls to stop the guest.
func (c *VCPU) SetImmediateExit(on bool) {
	c.page[1] = 0
	if on {
		c.page[1] = 1
	}
}

// ImmediateExit says whether SetImmediateExit is in force.
func (c *VCPU) ImmediateExit() bool { return c.page[1] != 0 }

// RequestStop asks the kernel to leave the guest at the next counted trap. Any
// thread may call it.
func (c *VCPU) RequestStop() { atomic.StoreUint64(&c.counters.Stop, 0) }

// SetStop lets the guest leave at trap n.
func (c *VCPU) SetStop(n uint64) { atomic.StoreUint64(&c.counters.Stop, n) }

// Counters is the part of the run page that Duet's kernel shares.
func (c *VCPU) Counters() *Counters { return c.counters }

// Regs are the general registers as of the last exit; read only.
func (c *VCPU) Regs() *Regs { return c.regs }

// RegsBytes are the same as bytes, for hashing.
func (c *VCPU) RegsBytes() []byte { return c.page[304 : 304+144] }

// ExitReason is why the last Run returned without an error.
func (c *VCPU) ExitReason() uint32 { return *(*uint32)(unsafe.Pointer(&c.page[8])) }

// HardwareReason is the first word of the exit data.
func (c *VCPU) HardwareReason() uint64 { return *(*uint64)(unsafe.Pointer(&c.page[32])) }

// Ready says whether Interrupt may be called.
func (c *VCPU) Ready() bool { return c.page[12] != 0 }

// SetReady puts back what Ready said before a Settle.
func (c *VCPU) SetReady(ready bool) {
	c.page[12] = 0
	if ready {
		c.page[12] = 1
	}
}

// IF is the guest's interrupt flag as of the last exit.
func (c *VCPU) IF() bool { return c.page[13] != 0 }

// SetWindow asks for an exit as soon as an interrupt can be taken.
func (c *VCPU) SetWindow(on bool) {
	c.page[0] = 0
	if on {
		c.page[0] = 1
	}
}

// CR8 is the guest's task priority as of the last exit.
func (c *VCPU) CR8() uint64 { return *(*uint64)(unsafe.Pointer(&c.page[16])) }

// SetCR8 sets the task priority that the guest is entered with.
func (c *VCPU) SetCR8(v uint64) { *(*uint64)(unsafe.Pointer(&c.page[16])) = v }

// IO decodes an ExitIO.
func (c *VCPU) IO() (IO, error) {
	e := (*struct {
		direction, size uint8
		port            uint16
		count           uint32
		offset          uint64
	})(unsafe.Pointer(&c.page[32]))
	n := uint64(e.size) * uint64(e.count)
	if e.offset > uint64(len(c.page)) || n > uint64(len(c.page))-e.offset {
		return IO{}, fmt.Errorf("port access of %d bytes at %d of the run page", n, e.offset)
	}
	return IO{
		In: e.direction == 0, Size: int(e.size), Port: e.port, Count: int(e.count),
		Data: c.page[e.offset : e.offset+n],
	}, nil
}

// MMIO decodes an ExitMMIO.
func (c *VCPU) MMIO() MMIO {
	e := (*struct {
		addr  uint64
		data  [8]byte
		len   uint32
		write uint8
	})(unsafe.Pointer(&c.page[32]))
	return MMIO{Addr: e.addr, Write: e.write != 0, Data: e.data[:min(e.len, 8)]}
}

type msrExit struct {
	fault  uint8
	_      [7]uint8
	reason uint32
	index  uint32
	data   uint64
}

// MSR decodes an ExitReadMSR or ExitWriteMSR.
func (c *VCPU) MSR() MSR {
	e := (*msrExit)(unsafe.Pointer(&c.page[32]))
	return MSR{Index: e.index, Data: e.data}
}

// AnswerMSR gives the value of a read, or with fault lets the guest take a
// general protection fault.
func (c *VCPU) AnswerMSR(data uint64, fault bool) {
	e := (*msrExit)(unsafe.Pointer(&c.page[32]))
	e.data, e.fault = data, 0
	if fault {
		e.fault = 1
	}
}

// Interrupt injects vector at the next entry. Ready must say so first.
func (c *VCPU) Interrupt(vector uint8) error {
	v := uint32(vector)
	if err := ioctlPtr(c.fd, interrupt, unsafe.Pointer(&v)); err != nil {
		return fmt.Errorf("inject interrupt %#x: %w", vector, err)
	}
	c.page[12] = 0
	return nil
}

// SingleStep makes each Run execute one instruction and leave with ExitDebug.
func (c *VCPU) SingleStep(on bool) error {
	c.debug &^= debugStep
	if on {
		c.debug |= debugStep
	}
	return c.setDebug()
}

// Breakpoints makes an INT3 that the guest executes leave with ExitDebug and
// DebugBreakpoint, at the instruction.
func (c *VCPU) Breakpoints(on bool) error {
	c.debug &^= debugBreakpoints
	if on {
		c.debug |= debugBreakpoints
	}
	return c.setDebug()
}

const (
	debugEnable      = 1       // KVM_GUESTDBG_ENABLE
	debugStep        = 2       // KVM_GUESTDBG_SINGLESTEP
	debugBreakpoints = 0x10000 // KVM_GUESTDBG_USE_SW_BP
	debugHardware    = 0x20000 // KVM_GUESTDBG_USE_HW_BP
)

func (c *VCPU) setDebug() error {
	var d [72]byte
	if c.debug != 0 {
		*(*uint32)(unsafe.Pointer(&d[0])) = c.debug | debugEnable
	}
	return ioctlPtr(c.fd, setGuestDebug, unsafe.Pointer(&d))
}

// DebugBreakpoint says that an ExitDebug is that of an INT3.
func (c *VCPU) DebugBreakpoint() bool { return *(*uint32)(unsafe.Pointer(&c.page[32])) == 3 }

// TSCKHz is the frequency of the host's time-stamp counter in kHz.
func (c *VCPU) TSCKHz() (uint64, error) {
	n, err := ioctlInt(c.fd, getTSCKHz, 0)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("read the time-stamp counter's frequency: %d kHz (%w)", n, err)
	}
	return uint64(n), nil
}

// Translate gives the guest physical address of a guest virtual one, by the
// guest's own page tables.
func (c *VCPU) Translate(linear uint64) (physical uint64, ok bool) {
	t := struct {
		linear, physical          uint64
		valid, writable, usermode uint8
		_                         [5]uint8
	}{linear: linear}
	if err := ioctlPtr(c.fd, translate, unsafe.Pointer(&t)); err != nil {
		return 0, false
	}
	return t.physical, t.valid != 0
}

// SetCPUID fixes the leaves that the guest sees.
func (c *VCPU) SetCPUID(leaves []CPUID) error {
	if len(leaves) > maxCPUID {
		return fmt.Errorf("%d CPUID leaves, at most %d", len(leaves), maxCPUID)
	}
	set := &cpuid2{n: uint32(len(leaves))}
	copy(set.entries[:], leaves)
	if err := ioctlPtr(c.fd, setCPUID2, unsafe.Pointer(set)); err != nil {
		return fmt.Errorf("set the guest's CPU features: %w", err)
	}
	return nil
}

// OverrideExitReason replaces the reason of the last exit, for a run loop that
// took further steps on the way to it.
func (c *VCPU) OverrideExitReason(r uint32) { *(*uint32)(unsafe.Pointer(&c.page[8])) = r }
