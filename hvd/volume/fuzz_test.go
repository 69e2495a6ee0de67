package volume

import (
	"encoding/binary"
	"testing"
)

func FuzzGPT(f *testing.F) {
	tb := &table{blocks: 1 << 18, blockSize: 512}
	must2(tb.allocate(partition{typ: TypeDisk, id: GUID{1}, name: "duet:web:root"}, 1<<20))
	a, _ := tb.encode()
	f.Add(a[512:1024], a[1024:])
	f.Add([]byte(gptSignature), []byte{})
	f.Fuzz(func(t *testing.T, head, entries []byte) {
		h, err := decodeHeader(head, 1, 1<<18)
		if err != nil {
			return
		}
		parts, err := decodeEntries(h, entries)
		if err != nil || len(parts) != gptEntries {
			return
		}
		got := &table{disk: h.disk, blocks: 1 << 18, blockSize: 512}
		copy(got.parts[:], parts)
		if got.check() != nil {
			return
		}
		again, _ := got.encode()
		h2, err := decodeHeader(again[512:1024], 1, 1<<18)
		if err != nil || h2.disk != h.disk {
			t.Fatalf("encoded header: %v", err)
		}
		if _, err := decodeEntries(h2, again[1024:]); err != nil {
			t.Fatal(err)
		}
		_ = got.allocate(partition{typ: TypeDisk}, 1<<20)
	})
}

func FuzzRecords(f *testing.F) {
	f.Add(superblock{blockSize: 512, blocks: 9}.encode())
	f.Add(lockRecord{generation: 1, owner: "a"}.encode(512))
	b, err := definitions{generation: 3}.encode(0)
	must2(err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeLock(b); err == nil && len(b) == 512 {
			if got, err := decodeLock(l.encode(512)); err != nil || got != l {
				t.Fatalf("%+v became %+v, %v", l, got, err)
			}
		}
		if s, err := decodeSuperblock(b); err == nil {
			if got, err := decodeSuperblock(s.encode()); err != nil || got != s {
				t.Fatalf("%+v became %+v, %v", s, got, err)
			}
		}
		if d, err := decodeSlot(b, 0); err == nil {
			e, err := d.encode(0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decodeSlot(e, 0); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = ParseDefinition(b)
		if len(b) >= 4 { // past the checksum
			n := binary.LittleEndian.Uint32(b)
			p := make([]byte, slotHeader+len(b)-4)
			copy(p, slotMagic)
			p[8] = layoutVersion
			binary.LittleEndian.PutUint32(p[12:], n)
			seal(p)
			copy(p[slotHeader:], b[4:])
			_, _ = decodeSlot(p, 0)
		}
	})
}

func must2(err error) {
	if err != nil {
		panic(err)
	}
}
