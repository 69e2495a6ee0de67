package diskref

// Request is a read or write of the guest's.
type Request struct {
	Disk   int
	ID     uint64
	Write  bool
	Sector uint64 // of 512 bytes
	Len    int    // bytes, whole sectors
}

func (r Request) overlaps(o Request) bool {
	return r.Disk == o.Disk && r.Sector < o.Sector+uint64(o.Len/SectorSize) && o.Sector < r.Sector+uint64(r.Len/SectorSize)
}

// MaxTracked bounds the requests that a Tracker follows: all that 16 disks with
// 256 requests each can have in flight.
const MaxTracked = 4 << 10

// Tracker follows the requests of a live guest from where it makes them to where
// it is told of their completion, and knows which reads share blocks with a write
// in that time. The zero value follows none.
type Tracker struct {
	flights []tracked
	blind   bool // a write isn't followed: nothing is steady any more
}

type tracked struct {
	Request
	raced bool
}

// Issued notes a request as the guest makes it, in the order in which it does.
// Flushes needn't be noted.
func (t *Tracker) Issued(r Request) {
	f := tracked{Request: r}
	for i := range t.flights {
		o := &t.flights[i]
		if o.Write == r.Write || !o.overlaps(r) {
			continue
		}
		if r.Write {
			o.raced = true
		} else {
			f.raced = true
		}
	}
	if len(t.flights) >= MaxTracked {
		t.blind = t.blind || r.Write
		return
	}
	t.flights = append(t.flights, f)
}

// Done notes the completion of a request as the guest is told of it. It returns
// the request, and whether it is a steady read: no write to its blocks was made
// or pending at any time since it was made. ok is false for a request that isn't
// followed, a flush for instance.
func (t *Tracker) Done(disk int, id uint64) (r Request, steady, ok bool) {
	for i := range t.flights {
		f := t.flights[i]
		if f.Disk == disk && f.ID == id {
			t.flights = append(t.flights[:i], t.flights[i+1:]...)
			return f.Request, !f.Write && !f.raced && !t.blind, true
		}
	}
	return Request{}, false, false
}

// Reset forgets all requests.
func (t *Tracker) Reset() { *t = Tracker{flights: t.flights[:0]} }
