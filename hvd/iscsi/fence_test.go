package iscsi

import (
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// keyring answers PERSISTENT RESERVE as tgt does: keys without ports, and no PREEMPT
// AND ABORT.
type keyring struct {
	mu   sync.Mutex
	keys []uint64
}

func (k *keyring) intercept(c *fakeConn, h *header, data []byte) (handled bool) {
	if h.op() != opSCSICommand || h[32] != scsiReserveIn && h[32] != scsiReserveOut {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	action := h[33]
	switch {
	case h[32] == scsiReserveIn && action == 0:
		b := make([]byte, 8)
		binary.BigEndian.PutUint32(b[4:], uint32(8*len(k.keys)))
		for _, key := range k.keys {
			b = binary.BigEndian.AppendUint64(b, key)
		}
		c.reply(h, b)
	case h[32] == scsiReserveIn && action == 1:
		b := make([]byte, 24)
		b[7], b[21] = 16, WriteExclusiveRegistrantsOnly
		c.reply(h, b)
	case h[32] == scsiReserveOut && action == actionPreempt:
		victim := binary.BigEndian.Uint64(data[8:])
		for i, key := range k.keys {
			if key == victim {
				k.keys = append(k.keys[:i], k.keys[i+1:]...)
				break
			}
		}
		c.status(h.itt(), statusGood, nil)
	default:
		c.status(h.itt(), statusCheckCondition, fixedSense(senseIllegalRequest, 0x24, 0))
	}
	return true
}

// TestFenceWithoutAbort: where a fence can't abort what the target has taken of the
// victim, a reset of the unit must, or the fence fails.
func TestFenceWithoutAbort(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	victim := Port{Initiator: "iqn.test:victim", ISID: [6]byte{0x80}}
	ring := &keyring{keys: []uint64{portKey(s.Port()), portKey(victim)}}
	var able atomic.Bool
	f.mu.Lock()
	f.intercept = func(c *fakeConn, h *header, data []byte) bool {
		if h.op() == opTaskRequest && !able.Load() {
			r := header{0: byte(opTaskResponse), 1: flagFinal, 2: 255}
			r.put32(16, h.itt())
			c.send(r, nil, true)
			return true
		}
		return ring.intercept(c, h, data)
	}
	f.mu.Unlock()
	err := s.Fence(t.Context(), victim)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "its writes under way may still land") {
		t.Errorf("without a reset: %v", err)
	}
	able.Store(true)
	mustDo(t, "fence again", s.Fence(t.Context(), victim))
	if f.resets != 1 || len(ring.keys) != 1 || s.Logins() != 1 {
		t.Errorf("%d resets, keys %x, %d logins", f.resets, ring.keys, s.Logins())
	}
}
