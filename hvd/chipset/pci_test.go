package chipset

import "testing"

// register is a PCI function with one writable register.
type register struct{ v uint32 }

func (r *register) ConfigRead(off, size int) uint32     { return r.v >> (8 * (off & 3)) }
func (r *register) ConfigWrite(off, size int, v uint32) { r.v = v << (8 * (off & 3)) }

func TestPCI(t *testing.T) {
	p := NewPCI()
	r := &register{v: 0x44332211}
	p.Attach(5, r)
	p.Write(0xcf8, 4, 0x80002804)
	for _, c := range []struct {
		port uint16
		size int
		want uint32
	}{
		{0xcf8, 4, 0x80002804},
		{0xcf8, 1, 0xff},
		{0xcfa, 2, 0xffff},
		{0xcfc, 4, 0x44332211},
		{0xcfd, 1, 0x22},
		{0xcfe, 2, 0x4433},
		{0xcff, 2, 0xffff}, // beyond the register
	} {
		if got := p.Read(c.port, c.size); got != c.want {
			t.Errorf("port %#x, %d bytes: %#x, want %#x", c.port, c.size, got, c.want)
		}
	}
	p.Write(0xcfd, 1, 0x1aa)
	if r.v != 0xaa00 {
		t.Errorf("register %#x after a byte was written", r.v)
	}
	for _, addr := range []uint32{0x00002804, 0x80012804, 0x80002904, 0x80003004} {
		p.Write(0xcf8, 4, addr)
		if got := p.Read(0xcfc, 4); got != 0xffffffff {
			t.Errorf("address %#x: %#x", addr, got)
		}
	}
	p.Write(0xcf8, 4, 0x80000000)
	if got := p.Read(0xcfc, 4); got != 0x12378086 {
		t.Errorf("host bridge %#x", got)
	}
}
