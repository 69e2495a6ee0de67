package diskref

// MaxKept bounds the data that a primary keeps, in bytes. What doesn't fit goes
// into the log.
const MaxKept = 64 << 20

// Keeper keeps what a primary's references stand for until its secondary holds
// it. The zero value keeps nothing.
type Keeper struct {
	kept  []kept // in the log's order
	bytes int
}

type kept struct {
	lsn  uint64 // behind the entry
	disk int
	id   uint64
	data []byte
}

// Room says whether n more bytes can be kept.
func (k *Keeper) Room(n int) bool { return k.bytes+n <= MaxKept }

// Keep keeps the data of a reference whose entry ends at lsn. The caller leaves
// it as it is.
func (k *Keeper) Keep(lsn uint64, disk int, id uint64, data []byte) {
	k.kept = append(k.kept, kept{lsn, disk, id, data})
	k.bytes += len(data)
}

// Acked forgets what the secondary holds: the log up to lsn.
func (k *Keeper) Acked(lsn uint64) {
	n := 0
	for n < len(k.kept) && k.kept[n].lsn <= lsn {
		k.bytes -= len(k.kept[n].data)
		k.kept[n] = kept{}
		n++
	}
	if k.kept = k.kept[n:]; len(k.kept) == 0 {
		k.kept = nil
	}
}

// Data is what a reference stands for that isn't acknowledged.
func (k *Keeper) Data(disk int, id uint64) ([]byte, bool) {
	for i := range k.kept {
		if k.kept[i].disk == disk && k.kept[i].id == id {
			return k.kept[i].data, true
		}
	}
	return nil, false
}

// Reset forgets everything: another log begins.
func (k *Keeper) Reset() { *k = Keeper{} }
