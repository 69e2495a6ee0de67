package playback

import (
	"encoding/binary"

	"github.com/duet-ft/duet/hvd/kvm"
)

// Registers implements gdb.Target.
func (d *Debugger) Registers() ([]byte, error) {
	s, err := d.p.Machine.Registers()
	if err != nil {
		return nil, err
	}
	return registers(s), nil
}

// registers lays a CPU's state out as gdb.RegisterSizes says. The FPU's is the
// legacy region of XSAVE (AMD64 APM volume 2, 11.4).
func registers(s *kvm.State) []byte {
	r, x := &s.Regs, &s.Sregs
	var b []byte
	for _, v := range []uint64{
		r.RAX, r.RBX, r.RCX, r.RDX, r.RSI, r.RDI, r.RBP, r.RSP,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15, r.RIP,
	} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(r.RFLAGS))
	for _, v := range []kvm.Segment{x.CS, x.SS, x.DS, x.ES, x.FS, x.GS} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v.Selector))
	}
	f := s.XSAVE[:]
	for i := range 8 {
		b = append(b, f[32+16*i:32+16*i+10]...)
	}
	half := func(at int) uint32 { return uint32(binary.LittleEndian.Uint16(f[at:])) }
	for _, v := range []uint32{
		half(0), half(2), half(4) & 0xff, half(12), binary.LittleEndian.Uint32(f[8:]),
		half(20), binary.LittleEndian.Uint32(f[16:]), half(6),
	} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	for i := range 16 {
		b = append(b, f[160+16*i:160+16*i+16]...)
	}
	return append(b, f[24:28]...)
}

// Memory implements gdb.Target.
func (d *Debugger) Memory(addr uint64, b []byte) int {
	n := 0
	for n < len(b) {
		piece := min(len(b)-n, 4096-int((addr+uint64(n))%4096))
		if d.p.Machine.ReadVirtual(addr+uint64(n), b[n:n+piece]) != nil {
			break
		}
		n += piece
	}
	return n
}
