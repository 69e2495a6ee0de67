package sim

import "encoding/binary"

const (
	clientCount = 3
	keyCount    = 2
)

// op is what a client asks for, and what it is answered: a write of value to a
// key, or a read of it. n counts a client's operations of one kind on one key,
// so that a request that comes again is known.
type op struct {
	client int
	key    int
	read   bool
	n      uint64
	value  uint64
}

const opSize = 3 + 16

func (o op) encode() []byte {
	b := make([]byte, 3, opSize)
	b[0], b[1] = byte(o.client), byte(o.key)
	if o.read {
		b[2] = 1
	}
	b = binary.LittleEndian.AppendUint64(b, o.n)
	return binary.LittleEndian.AppendUint64(b, o.value)
}

// decodeOp reads an encoded op; ok is false for other bytes.
func decodeOp(b []byte) (o op, ok bool) {
	if len(b) != opSize || b[0] >= clientCount || b[1] >= keyCount || b[2] > 1 {
		return op{}, false
	}
	return op{
		client: int(b[0]), key: int(b[1]), read: b[2] == 1,
		n: binary.LittleEndian.Uint64(b[3:]), value: binary.LittleEndian.Uint64(b[11:]),
	}, true
}

// record is what a block of the disk holds for one key: its value, and of each
// client the number of its newest write.
type record struct {
	value  uint64
	writes [clientCount]uint64
}

const recordSize = 8 + 8*clientCount

func (r record) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, r.value)
	for _, n := range r.writes {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

func decodeRecord(b []byte) record {
	r := record{value: binary.LittleEndian.Uint64(b)}
	for c := range r.writes {
		r.writes[c] = binary.LittleEndian.Uint64(b[8+8*c:])
	}
	return r
}

// block is what the disk holds for one key: two copies of its record, as a file
// system keeps of what it can't do without. A write that is torn changes one.
type block [2]record

const blockSize = 2 * recordSize

func (b block) encode() []byte { return b.append(make([]byte, 0, blockSize)) }

func (b block) append(p []byte) []byte { return b[1].append(b[0].append(p)) }

func decodeBlock(b []byte) block { return block{decodeRecord(b), decodeRecord(b[recordSize:])} }

// newest is the copy that lacks no write of the other one.
func (b block) newest() record {
	if b[0].behind(b[1]) {
		return b[1]
	}
	return b[0]
}

// behind says that r lacks a write that other has.
func (r record) behind(other record) bool {
	for c, n := range r.writes {
		if n < other.writes[c] {
			return true
		}
	}
	return false
}

// slot is what the guest keeps for one key.
type slot struct {
	record
	durable bool // it is on the disk
	loaded  bool // it was read from there
}

// request is a disk request that the guest waits for: a write of a key's record
// for a client, or a read of it: while booting, to know it; later, as an audit,
// whose result only goes into the guest's registers.
type request struct {
	id     uint64
	key    int
	client int
	read   bool
	audit  bool
	record record
}

// operate is the guest's program for a client's operation. One on a key whose
// write is under way is dropped; the client repeats it.
func (g *guest) operate(o op) {
	s := &g.slots[o.key]
	switch {
	case !s.durable:
	case o.read:
		o.value = s.value
		g.do(effect{kind: reply, op: o})
	case o.n == s.writes[o.client]+1:
		s.value, s.durable = o.value, false
		s.writes[o.client] = o.n
		g.submit(request{key: o.key, client: o.client, record: s.record})
		g.audit(o.key)
	case o.n == s.writes[o.client]:
		g.do(effect{kind: reply, op: o})
	}
}

// complete is the guest's program for the end of a disk request. One that failed is
// made again, but for an audit.
func (g *guest) complete(r request, status byte, data []byte) {
	switch {
	case status != 0 && r.audit:
		return
	case status != 0:
		g.submit(r)
		return
	case r.audit:
		for _, found := range decodeBlock(data) {
			g.acc = mix(g.acc, found.value)
			for _, n := range found.writes {
				g.acc = mix(g.acc, n)
			}
		}
		return
	}
	s := &g.slots[r.key]
	s.durable = true
	if r.read {
		s.record, s.loaded = decodeBlock(data).newest(), true
		return
	}
	g.do(effect{kind: reply, op: op{client: r.client, key: r.key, n: s.writes[r.client], value: s.value}})
	g.audit(r.key)
}

// audit now and then reads a block: beside a write to it, or right behind one, or
// another key's.
func (g *guest) audit(key int) {
	switch g.acc >> 32 & 7 {
	case 0, 1, 2:
		g.submit(request{key: key, read: true, audit: true})
	case 3:
		g.submit(request{key: (key + 1) % len(g.slots), read: true, audit: true})
	}
}
