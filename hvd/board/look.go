package board

import "github.com/duet-ft/duet/hvd/virtio"

// Look has the devices take what the guest gave them without a notification. It is
// called at each exit and whenever the guest is told the time.
func (b *Board) Look(at virtio.Pause) {
	for _, t := range b.d.functions {
		t.Look(at)
	}
}

// Unheard appends the queues in which chains may wait for the next exit.
func (b *Board) Unheard(to []virtio.Unheard) []virtio.Unheard {
	for _, t := range b.d.functions {
		to = t.Unheard(to)
	}
	return to
}
