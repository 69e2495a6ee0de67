package bundle

import "encoding/binary"

const (
	localSize   = 30
	centralSize = 46
	endSize     = 22
	// fatDate is 1980-01-01: archives of equal parts are equal.
	fatDate = 33
)

// member is a file of an archive.
type member struct {
	name   string
	size   uint32
	crc    uint32
	offset uint32 // of its local header
}

// shared is what both headers of a member have.
func (m member) shared() []byte {
	b := make([]byte, 24)
	binary.LittleEndian.PutUint16(b[0:], 10)
	binary.LittleEndian.PutUint16(b[8:], fatDate)
	binary.LittleEndian.PutUint32(b[10:], m.crc)
	binary.LittleEndian.PutUint32(b[14:], m.size)
	binary.LittleEndian.PutUint32(b[18:], m.size)
	binary.LittleEndian.PutUint16(b[22:], uint16(len(m.name)))
	return b
}

func (m member) local() []byte {
	b := append([]byte("PK\x03\x04"), m.shared()...)
	return append(append(b, 0, 0), m.name...)
}

// tail is the end of an archive of these members, which lie before it: central headers and the end's record.
func tail(members []member) []byte {
	var b []byte
	start := uint32(0)
	for _, m := range members {
		b = append(b, "PK\x01\x02\x0a\x00"...)
		b = append(b, m.shared()...)
		b = append(b, make([]byte, 12)...)
		b = binary.LittleEndian.AppendUint32(b, m.offset)
		b = append(b, m.name...)
		start = m.offset + localSize + uint32(len(m.name)) + m.size
	}
	size := uint32(len(b))
	b = append(b, "PK\x05\x06\x00\x00\x00\x00"...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(members)))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(members)))
	b = binary.LittleEndian.AppendUint32(b, size)
	b = binary.LittleEndian.AppendUint32(b, start)
	return append(b, 0, 0)
}
