package iscsi

import (
	"bytes"
	"encoding/binary"
)

// command is what the unit of a fakeTarget does.
func (c *fakeConn) command(h *header, out []byte) {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	cdb, bs := h[32:], f.blockSize
	at := func() int { return int(binary.BigEndian.Uint64(cdb[2:])) * bs }
	switch cdb[0] {
	case scsiInquiry:
		c.inquiry(h)
	case scsiServiceIn16:
		b := make([]byte, 32)
		binary.BigEndian.PutUint64(b, uint64(len(f.disk)/bs-1))
		binary.BigEndian.PutUint32(b[8:], uint32(bs))
		c.reply(h, b)
	case scsiRead16:
		c.reply(h, f.disk[at():][:h.u32(20)])
	case scsiWrite16:
		copy(f.disk[at():], out)
		c.status(h.itt(), statusGood, nil)
	case scsiWriteSame16:
		n := int(binary.BigEndian.Uint32(cdb[10:]))
		if n > fakeWriteSame {
			f.t.Errorf("WRITE SAME of %d blocks; %d are allowed", n, fakeWriteSame)
		}
		for i := range n {
			copy(f.disk[at()+i*bs:][:bs], out)
		}
		f.zeroed += n
		c.status(h.itt(), statusGood, nil)
	case scsiUnmap:
		n := int(binary.BigEndian.Uint32(out[16:]))
		clear(f.disk[int(binary.BigEndian.Uint64(out[8:]))*bs:][:n*bs])
		f.zeroed += n
		c.status(h.itt(), statusGood, nil)
	case scsiCompareAndWrite:
		n := len(out) / 2
		if !bytes.Equal(f.disk[at():][:n], out[:n]) {
			c.status(h.itt(), statusCheckCondition, fixedSense(senseMiscompare, 0x1d, 0))
			return
		}
		copy(f.disk[at():], out[n:])
		c.status(h.itt(), statusGood, nil)
	case scsiReserveIn:
		c.reply(h, make([]byte, 8))
	case scsiTestUnitReady, scsiSyncCache16:
		c.status(h.itt(), statusGood, nil)
	default:
		c.status(h.itt(), statusCheckCondition, fixedSense(senseIllegalRequest, 0x20, 0))
	}
}

// fakeWriteSame is how many blocks a fakeTarget lets WRITE SAME and UNMAP cover.
const fakeWriteSame = 1000

func (c *fakeConn) inquiry(h *header) {
	f, cdb := c.f, h[32:]
	page := func(code byte, body []byte) {
		c.reply(h, append([]byte{0, code, 0, byte(len(body))}, body...))
	}
	switch {
	case cdb[1] == 0:
		b := make([]byte, 64)
		copy(b[8:], "Fake    target          1   ")
		c.reply(h, b)
	case cdb[2] == 0x80:
		page(0x80, []byte(f.serial))
	case cdb[2] == 0xb0:
		b := make([]byte, 60)
		binary.BigEndian.PutUint32(b[16:], fakeWriteSame)
		binary.BigEndian.PutUint64(b[32:], fakeWriteSame)
		page(0xb0, b)
	case cdb[2] == 0xb2:
		page(0xb2, []byte{0, 0xc0, 2, 0})
	default:
		c.status(h.itt(), statusCheckCondition, fixedSense(senseIllegalRequest, 0x24, 0))
	}
}

// listTargets is a discovery session: an answer of three PDUs to SendTargets.
func (c *fakeConn) listTargets() {
	text := keyList{
		{"TargetName", "iqn.test:t"},
		{"TargetAddress", c.f.ln.Addr().String() + ",1"},
		{"TargetAddress", "[2001:db8::1]:3261,2"},
		{"TargetName", "iqn.test:u"},
	}.encode()
	for part := 0; ; part++ {
		var h header
		if c.framing.readHeader(c.br, &h) != nil {
			return
		}
		data := make([]byte, h.dataLen())
		if c.framing.readData(c.br, &h, data) != nil || h.op() != opTextRequest {
			return
		}
		if asked := string(data) == "SendTargets=All\x00"; asked != (part == 0) || (part > 0 && h.transferTag() != uint32(part)) {
			c.f.t.Errorf("part %d is asked for by %q with tag 0x%x", part, data, h.transferTag())
		}
		r := header{0: byte(opTextResponse)}
		r.put32(16, h.itt())
		r.put32(20, uint32(part+1))
		n := min(len(text), 50)
		if n == len(text) {
			r[1] = flagFinal
			r.put32(20, noTag)
		}
		c.send(r, text[:n], true)
		text = text[n:]
	}
}
