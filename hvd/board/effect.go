package board

import (
	"fmt"

	"github.com/duet-ft/duet/hvd/virtio/blk"
)

// EffectKind says what an effect is.
type EffectKind uint8

// The kinds of effects.
const (
	DiskRequest EffectKind = iota + 1 // Disk and Request
	Frame                             // Data: an Ethernet frame
	Vsock                             // Data: a packet with its header
	Console                           // Data: bytes, at least one
	PowerOff                          // the guest turned the machine off
	Reset                             // the guest reset the machine
)

// String is the kind's name, for people.
func (k EffectKind) String() string {
	names := [...]string{"", "disk request", "frame", "vsock packet", "console output", "power off", "reset"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("effect %d", k)
	}
	return names[k]
}

// Effect is something that the guest does to the world. Its Data belongs to
// whoever took the effect; a write's Request.Data is shared with the disk's
// state and mustn't be changed.
type Effect struct {
	Kind    EffectKind
	Disk    int
	Request blk.Request
	Data    []byte
}

// TakeEffects returns what the guest did since the last call, in order.
// Consecutive console output is one effect. Take them after every exit: they
// are bounded by what one exit can do.
func (b *Board) TakeEffects() []Effect {
	e := b.d.effects
	b.d.effects = nil
	return e
}

// PendingDisk returns the disk requests in flight as effects, in order per
// disk, for a host that takes over and has to issue them again.
func (b *Board) PendingDisk() []Effect {
	var out []Effect
	for i, disk := range b.d.disks {
		for _, r := range disk.Pending() {
			out = append(out, Effect{Kind: DiskRequest, Disk: i, Request: r})
		}
	}
	return out
}

// console appends a byte to the console's output.
func (d *devices) console(c uint8) {
	if n := len(d.effects); n > 0 && d.effects[n-1].Kind == Console {
		d.effects[n-1].Data = append(d.effects[n-1].Data, c)
		return
	}
	d.effects = append(d.effects, Effect{Kind: Console, Data: []byte{c}})
}

// DiskDone completes a disk's request: status is a blk status byte, data what
// a successful read read. It is an error if no such request is in flight.
func (b *Board) DiskDone(disk int, id uint64, status byte, data []byte) error {
	if disk < 0 || disk >= len(b.d.disks) {
		return fmt.Errorf("completion for disk %d of %d", disk, len(b.d.disks))
	}
	if err := b.d.disks[disk].Complete(id, status, data); err != nil {
		return fmt.Errorf("disk %d: %w", disk, err)
	}
	return nil
}

// NetReceive gives the guest a frame; it is lost if the guest has no buffer.
func (b *Board) NetReceive(frame []byte) {
	if b.d.net != nil {
		b.d.net.Receive(frame)
	}
}

// VsockReceive gives the guest a vsock packet; it is lost if too many wait.
func (b *Board) VsockReceive(pkt []byte) {
	if b.d.vsock != nil {
		b.d.vsock.Receive(pkt)
	}
}

// VsockRoom is how many bytes of packets VsockReceive can take now. Whoever has
// more lets it wait: a stream with a hole is worse than a slow one.
func (b *Board) VsockRoom() int {
	if b.d.vsock == nil {
		return 0
	}
	return b.d.vsock.Room()
}

// VsockReset tells the guest that all its vsock connections are gone.
func (b *Board) VsockReset() {
	if b.d.vsock != nil {
		b.d.vsock.TransportReset()
	}
}

// ConsoleInput types at the guest's serial console; what exceeds the backlog
// of the UART is lost.
func (b *Board) ConsoleInput(p []byte) {
	b.d.uart.Input(p)
	b.d.updateUART()
}

// ConsoleRoom is how many bytes ConsoleInput can take now, and how many it took
// ever, counted from the wall clock at the guest's start in ns: two starts
// share no count.
func (b *Board) ConsoleRoom() (room int, typed uint64) {
	return b.d.uart.Room(), b.d.uart.Typed
}

// PowerButton presses the ACPI power button.
func (b *Board) PowerButton() {
	b.d.pm.PressButton()
	b.d.updateSCI()
}
