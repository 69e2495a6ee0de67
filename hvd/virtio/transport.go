package virtio

import (
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/mem"
)

// Device status bits (VIRTIO 1.2 section 2.1).
const (
	StatusAcknowledge = 1
	StatusDriver      = 2
	StatusDriverOK    = 4
	StatusFeaturesOK  = 8
	StatusNeedsReset  = 0x40
	StatusFailed      = 0x80
)

// Feature bits of the transport (section 6), which every device here offers.
const (
	FeatureEventIdx = 1 << 29
	FeatureVersion1 = 1 << 32
)

const (
	isrQueue  = 1
	isrConfig = 2
)

// LateLimit is how long an interrupt that may be late waits at most, in ns of
// guest time: a tick at 250 Hz, so that as a rule a tick brings it along.
const LateLimit = 4_000_000

// Handler is the device behind a transport.
type Handler interface {
	// Notify says that the driver added chains to a queue, or just started
	// and may have done so.
	Notify(queue int)
	// Reset drops what the device has of the driver: all chains are void.
	Reset()
}

// Bus is what a transport is wired to.
type Bus struct {
	Mem  *mem.Memory
	MSI  func(addr uint64, data uint32) // an interrupt message
	INTx func(high bool)                // the level of the interrupt pin
}

// Spec says what a function is. It isn't state: both sides make it alike.
type Spec struct {
	DeviceID uint16 // virtio device ID (section 5)
	Class    uint32 // PCI class code, 24 bits
	Features uint64 // beyond those of the transport
	Queues   int    // at most 63
	Quiet    uint64 // bit q: queue q may go without notifications, see Quiet
	Config   []byte // device configuration, at most 256 bytes
	IRQ      uint8  // what the interrupt line register says
	Mem      uint32 // where the firmware put BAR0
	IO       uint16 // and BAR1
}

// Transport is a virtio device's PCI function and its queues. The exported
// fields are its state.
type Transport struct {
	Space                []byte // PCI configuration space
	DeviceFeaturesSelect uint32
	DriverFeaturesSelect uint32
	DriverFeatures       uint64
	Status               uint8
	QueueSelect          uint16
	ConfigVector         uint16
	ISR                  uint8
	Queues               []Queue
	MSIX                 []MSIXEntry
	PBA                  uint64 // pending bits of the MSI-X table
	Now                  uint64 // guest time of the last Advance
	Late                 uint64 // when late interrupts are raised; 0: none wait
	Fault                string `json:",omitempty"` // why the device needs a reset

	spec    Spec
	bus     Bus
	handler Handler
	fixed   []byte // Space after reset
	mask    []byte // bits of Space that the guest can write
}

// Init makes a zero transport a function after spec, reset.
func (t *Transport) Init(spec Spec, bus Bus, h Handler) {
	*t = Transport{spec: spec, bus: bus, handler: h}
	t.fixed, t.mask = configSpace(&t.spec)
	t.Space = append([]byte(nil), t.fixed...)
	t.Queues = make([]Queue, spec.Queues)
	t.MSIX = make([]MSIXEntry, spec.Queues+1)
	for i := range t.MSIX {
		t.MSIX[i].Control = msixMasked
	}
	t.clear()
}

// Mem is the guest's memory.
func (t *Transport) Mem() *mem.Memory { return t.bus.Mem }

// Has says whether the driver accepted all features in mask.
func (t *Transport) Has(mask uint64) bool { return t.DriverFeatures&mask == mask }

// Live says whether queues work: the driver is ready and has broken no rule.
func (t *Transport) Live() bool {
	return t.Status&(StatusDriverOK|StatusNeedsReset) == StatusDriverOK
}

// Ready says whether queue q works.
func (t *Transport) Ready(q int) bool { return t.Live() && t.Queues[q].Enabled }

func (t *Transport) eventIdx() bool { return t.Has(FeatureEventIdx) }

// clear is a device reset: everything but PCI's own state.
func (t *Transport) clear() {
	t.DeviceFeaturesSelect, t.DriverFeaturesSelect, t.DriverFeatures = 0, 0, 0
	t.Status, t.QueueSelect, t.ConfigVector, t.ISR = 0, 0, NoVector, 0
	t.PBA, t.Late, t.Fault = 0, 0, ""
	for i := range t.Queues {
		t.Queues[i] = Queue{Size: MaxQueueSize, Vector: NoVector}
	}
}

func (t *Transport) reset() {
	t.clear()
	t.updatePin()
	t.handler.Reset()
}

// Break says that the driver broke a rule: the device needs a reset, and rests
// until then.
func (t *Transport) Break(err error) {
	if t.Status&StatusNeedsReset != 0 {
		return
	}
	t.Status |= StatusNeedsReset
	t.Fault = err.Error()
	if t.Status&StatusDriverOK != 0 {
		t.raise(t.ConfigVector, isrConfig)
	}
}

// Next takes the next available chain of queue q, of at most limit bytes. A
// driver that breaks a rule breaks the device, and ok is false.
func (t *Transport) Next(q int, limit uint64) (c Chain, ok bool) {
	if !t.Ready(q) {
		return Chain{}, false
	}
	c, ok, err := t.Queues[q].next(t.bus.Mem, limit)
	if err != nil {
		t.Break(fmt.Errorf("queue %d: %w", q, err))
	}
	return c, ok
}

// Available is how many chains of queue q wait.
func (t *Transport) Available(q int) int {
	if !t.Ready(q) {
		return 0
	}
	n, err := t.Queues[q].available(t.bus.Mem)
	if err != nil {
		t.Break(fmt.Errorf("queue %d: %w", q, err))
	}
	return n
}

// Undo gives the last n chains that Next took back to queue q.
func (t *Transport) Undo(q, n int) { t.Queues[q].NextAvail -= uint16(n) }

// Use returns chains to the driver, without an interrupt.
func (t *Transport) Use(q int, elems ...Elem) {
	if err := t.Queues[q].publish(t.bus.Mem, elems); err != nil {
		t.Break(fmt.Errorf("queue %d: %w", q, err))
	}
}

// AskNotify tells the driver whether it should notify queue q of new chains.
func (t *Transport) AskNotify(q int, want bool) {
	if !t.Ready(q) {
		return
	}
	if err := t.Queues[q].askNotify(t.bus.Mem, t.eventIdx(), want); err != nil {
		t.Break(fmt.Errorf("queue %d: %w", q, err))
	}
}

// Signal interrupts if the driver wants that for what was used in queue q.
func (t *Transport) Signal(q int) {
	if t.wantsInterrupt(q) {
		t.raise(t.Queues[q].Vector, isrQueue)
	}
	t.Queues[q].Signalled = t.Queues[q].NextUsed
}

func (t *Transport) wantsInterrupt(q int) bool {
	if !t.Ready(q) {
		return false
	}
	want, err := t.Queues[q].wantsInterrupt(t.bus.Mem, t.eventIdx())
	if err != nil {
		t.Break(fmt.Errorf("queue %d: %w", q, err))
		return false
	}
	return want
}

// SignalLate is Signal for a queue whose completions nobody waits for as a
// rule. The interrupt comes with the next timer of any device, after LateLimit,
// or at once when half of the queue is used. By then the driver has often
// looked by itself, and it isn't needed any more.
func (t *Transport) SignalLate(q int) {
	if !t.wantsInterrupt(q) {
		return
	}
	if u := &t.Queues[q]; u.NextUsed-u.Signalled >= u.Size/2 {
		t.Signal(q)
	} else if t.Late == 0 {
		t.Late = t.Now + LateLimit
	}
}

// Flush raises late interrupts that are still wanted.
func (t *Transport) Flush() {
	if t.Late == 0 {
		return
	}
	t.Late = 0
	for q := range t.Queues {
		t.Signal(q)
	}
}

// Deadline is when late interrupts are raised.
func (t *Transport) Deadline() (ns uint64, armed bool) { return t.Late, t.Late != 0 }

// Advance tells the time, and raises late interrupts that are due.
func (t *Transport) Advance(now uint64) {
	t.Now = now
	if t.Late != 0 && now >= t.Late {
		t.Flush()
	}
}

// Validate checks a restored state against what the device is.
func (t *Transport) Validate() error {
	if len(t.Space) != len(t.fixed) || len(t.Queues) != t.spec.Queues || len(t.MSIX) != t.spec.Queues+1 {
		return errors.New("virtio: state of another kind of device")
	}
	for i, b := range t.Space {
		if (b^t.fixed[i])&^t.mask[i] != 0 {
			return fmt.Errorf("virtio: PCI configuration byte %#x is %#x in the state, and fixed at %#x", i, b, t.fixed[i])
		}
	}
	if !t.validVector(t.ConfigVector) || t.PBA>>len(t.MSIX) != 0 || t.DriverFeatures&^t.features() != 0 && t.Status&StatusFeaturesOK != 0 {
		return errors.New("virtio: vector or feature out of range")
	}
	for i := range t.Queues {
		q := &t.Queues[i]
		if n := q.Size; n == 0 || n > MaxQueueSize || n&(n-1) != 0 || !t.validVector(q.Vector) {
			return fmt.Errorf("virtio: queue %d: size or vector out of range", i)
		}
		if !q.Quiet.valid() {
			return fmt.Errorf("virtio: queue %d: counts of its notifications out of range", i)
		}
		if q.Enabled {
			if err := q.checkRings(t.bus.Mem); err != nil {
				return fmt.Errorf("virtio: queue %d: %w", i, err)
			}
		}
	}
	return nil
}
