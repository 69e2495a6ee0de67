package board

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
)

// script reads values from a fuzzer's bytes; it gives zeroes at their end.
type script []byte

func (s *script) take(n int) uint64 {
	var b [8]byte
	k := min(n, len(*s))
	copy(b[:], (*s)[:k])
	*s = (*s)[k:]
	return binary.LittleEndian.Uint64(b[:])
}

// step makes one call that the script describes.
func (s *script) step(b *Board, m *mem.Memory) {
	op := s.take(1)
	size := 1 << (op >> 6)
	switch op & 15 {
	case 0:
		b.PortIn(uint16(s.take(2)), size)
	case 1:
		b.PortOut(uint16(s.take(2)), size, uint32(s.take(4)))
	case 2:
		b.MMIORead(memBase+s.take(3), size)
	case 3:
		b.MMIOWrite(memBase+s.take(3), size, s.take(size))
	case 4:
		b.MMIORead(0xfee00000+s.take(2), 4)
	case 5:
		b.MMIOWrite(0xfee00000+s.take(2), 4, s.take(4))
	case 6: // the guest scribbles into its rings
		_ = m.Write(guestRings+s.take(3)%0x40000, binary.LittleEndian.AppendUint64(nil, s.take(size)))
	case 7: // or makes available what is there
		at := guestRings + s.take(1)%18*0x3000 + 0x1000
		if idx, err := m.Uint16(at + 2); err == nil {
			_ = m.PutUint16(at+2, idx+1)
		}
	case 8:
		slot := 2 + s.take(1)%4
		b.PortOut(ioBase+uint16(slot)*0x40+uint16(s.take(1)%3*2), 2, 0)
	case 9:
		b.Advance(b.Now() + s.take(4))
		b.Deadline()
	case 10:
		b.Pending()
		b.Ack()
		b.SetCR8(s.take(1))
	case 11:
		_ = b.DiskDone(int(s.take(1)%3), s.take(1), byte(s.take(1)), make([]byte, s.take(1)*512))
	case 12:
		b.NetReceive(make([]byte, s.take(2)))
	case 13:
		n := s.take(2)
		b.VsockReceive(append(binary.LittleEndian.AppendUint64(make([]byte, 24), n), make([]byte, 12+n)...))
	case 14:
		b.ConsoleInput(make([]byte, s.take(1)))
		b.PowerButton()
	case 15:
		switch op >> 4 & 3 {
		case 0:
			b.VsockReset()
		case 1:
			b.SetEOIFlag(s.take(size))
		case 2:
			b.TakeEOI()
		case 3:
			b.OfferEOI(size > 1, size > 2)
		}
	}
}

// FuzzAccess lets a guest and the world do anything to a board whose devices
// are up; nothing may panic, and the state must always be one that restores.
func FuzzAccess(f *testing.F) {
	rng := rand.New(rand.NewPCG(7, 7))
	for range 20 {
		p := make([]byte, 400)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		b, m := newBoard(t)
		g := &guest{rng: rand.New(rand.NewPCG(0, 0))}
		for slot := 2; slot < guestSlots; slot++ {
			g.bringUp(slot)(b, m)
			for q := range 3 {
				for range 8 {
					g.add(slot, q)(b, m)
				}
			}
		}
		b.TakeEffects()
		for s := script(p); len(s) > 0; {
			s.step(b, m)
			b.TakeEffects()
		}
		state, err := b.State()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Restore(state); err != nil {
			t.Fatalf("%v\n%s", err, state)
		}
	})
}

// leaves lists functions that change one value of a document each, in order.
func leaves(v any) []func(to any) {
	var out []func(any)
	child := func(c any, set func(any)) {
		out = append(out, set)
		out = append(out, leaves(c)...)
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			child(v[k], func(to any) { v[k] = to })
		}
	case []any:
		for i := range v {
			child(v[i], func(to any) { v[i] = to })
		}
	}
	return out
}

// damage changes one value of a document.
func damage(t testing.TB, doc []byte, which, number uint64, kind uint8) []byte {
	t.Helper()
	v, err := generic(doc)
	if err != nil {
		t.Fatal(err)
	}
	all := leaves(v)
	to := []any{
		number, number & 0xff, number & 0xffff, number & 0xffffffff, number & 1, nil, true, false,
		"", base64.StdEncoding.EncodeToString(make([]byte, number%300)),
		[]any{},
		map[string]any{},
	}
	all[which%uint64(len(all))](to[int(kind)%len(to)])
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// usedState is the state of a board after some random calls, with its memory.
func usedState(t testing.TB) (state, memory []byte) {
	b, m := newBoard(t)
	g := &guest{rng: rand.New(rand.NewPCG(1, 2))}
	for range 400 {
		g.next()(b, m)
		b.TakeEffects()
	}
	for slot := 2; slot < guestSlots; slot++ {
		g.bringUp(slot)(b, m)
	}
	b.TakeEffects()
	state, err := b.State()
	if err != nil {
		t.Fatal(err)
	}
	return state, bytes.Clone(m.Bytes())
}

// FuzzRestore restores damaged documents. Those that are accepted must not
// make a later call panic.
func FuzzRestore(f *testing.F) {
	state, memory := usedState(f)
	rng := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 300)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for i := range uint64(300) {
		f.Add(rng.Uint64(), rng.Uint64()>>(i%64), uint8(i), p)
	}
	f.Fuzz(func(t *testing.T, which, number uint64, kind uint8, p []byte) {
		b, m := newBoard(t)
		copy(m.Bytes(), memory)
		if b.Restore(damage(t, state, which, number, kind)) != nil {
			return
		}
		for s := script(p); len(s) > 0; {
			s.step(b, m)
			b.TakeEffects()
		}
		b.PendingDisk()
		for range 300 {
			b.TakeEOI()
			b.Pending()
			b.Ack()
			b.OfferEOI(true, false)
		}
		b.Advance(^uint64(0))
	})
}

func TestRestoreRefuses(t *testing.T) {
	b, m := newBoard(t)
	startNet(t, b, m)
	state, err := b.State()
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(doc map[string]any, dev func(i int) map[string]any){
		"version":       func(doc map[string]any, _ func(int) map[string]any) { doc["Version"] = stateVersion + 1 },
		"unknown field": func(doc map[string]any, _ func(int) map[string]any) { doc["More"] = 2 },
		"no devices":    func(doc map[string]any, _ func(int) map[string]any) { doc["Devices"] = nil },
		"null device": func(doc map[string]any, _ func(int) map[string]any) {
			doc["Devices"].([]any)[0].(map[string]any)["State"] = nil
		},
		"other device": func(doc map[string]any, _ func(int) map[string]any) {
			doc["Devices"].([]any)[7].(map[string]any)["Name"] = "x"
		},
		"missing field": func(_ map[string]any, dev func(int) map[string]any) { delete(dev(2), "TPR") },
		"short array":   func(_ map[string]any, dev func(int) map[string]any) { dev(2)["IRR"] = []any{1} },
		"PIT mode": func(_ map[string]any, dev func(int) map[string]any) {
			dev(1)["Channels"].([]any)[0].(map[string]any)["Mode"] = 6
		},
		"PIC priority":   func(_ map[string]any, dev func(int) map[string]any) { dev(0)["Master"].(map[string]any)["Lowest"] = 8 },
		"RTC memory":     func(_ map[string]any, dev func(int) map[string]any) { dev(4)["RAM"] = "AAAA" },
		"APIC entry":     func(_ map[string]any, dev func(int) map[string]any) { dev(2)["LVT"].([]any)[0] = 0xffffffff },
		"queue address":  func(_ map[string]any, dev func(int) map[string]any) { queue(dev(7), 0)["Desc"] = memSize },
		"queue size":     func(_ map[string]any, dev func(int) map[string]any) { queue(dev(7), 0)["Size"] = 0 },
		"number too big": func(_ map[string]any, dev func(int) map[string]any) { queue(dev(7), 0)["Size"] = 1 << 20 },
		"more queues": func(_ map[string]any, dev func(int) map[string]any) {
			t := dev(7)["Transport"].(map[string]any)
			t["Queues"] = append(t["Queues"].([]any), t["Queues"].([]any)[0])
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := generic(state)
			if err != nil {
				t.Fatal(err)
			}
			doc := v.(map[string]any)
			devices := doc["Devices"].([]any)
			spoil(doc, func(i int) map[string]any { return devices[i].(map[string]any)["State"].(map[string]any) })
			bad, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Restore(bad); err == nil {
				t.Fatal("no error")
			}
			if again, err := b.State(); err != nil || string(again) != string(state) {
				t.Errorf("a refused document changed the board (%v)", err)
			}
		})
	}
	v, err := generic(state)
	if err != nil {
		t.Fatal(err)
	}
	sorted, err := json.Marshal(v) // the same with its fields in another order
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range [][]byte{state, sorted} {
		if err := b.Restore(doc); err != nil {
			t.Errorf("the document itself: %v", err)
		}
	}
}

func queue(dev map[string]any, q int) map[string]any {
	return dev["Transport"].(map[string]any)["Queues"].([]any)[q].(map[string]any)
}

func TestStateRefusesPendingEffects(t *testing.T) {
	b, _ := newBoard(t)
	b.PortOut(0x3f8, 1, 'x')
	if _, err := b.State(); err == nil {
		t.Error("no error")
	}
}
