package event

import (
	"testing"
	"time"

	"github.com/zeebo/xxh3"
)

// mixes are stretches of a log: an idle guest's ticks, requests to a server,
// and reads of a disk.
var mixes = []struct {
	name    string
	entries []Entry // positions count from the stretch's begin
	length  uint64  // in positions
}{
	{"idle", []Entry{{Pos: 2, Kind: Deadline}, {Pos: 4, Kind: Deadline}, {Pos: 4, Kind: Mark}}, 4},
	{"requests", []Entry{
		{Pos: 1, Kind: Frame, Data: make([]byte, 100)},
		{Pos: 3, Kind: Mark},
		{Pos: 4, Kind: Frame, Data: make([]byte, 66)},
		{Pos: 5, Kind: Deadline},
	}, 5},
	{"disk", []Entry{{Pos: 1, Kind: DiskDone, ID: 7, Data: make([]byte, 4096)}, {Pos: 2, Kind: Mark}}, 3},
}

// stretchBytes is how much of the log is coded in one go: a full batch.
const stretchBytes = 64 << 10

// stretch appends a batch of a mix.
func stretch(buf []byte, entries []Entry, length uint64) []byte {
	enc := NewEncoder(Base{})
	for pos := uint64(0); len(buf) < stretchBytes; pos += length {
		for _, e := range entries {
			e.Pos += pos
			buf = enc.Append(buf, e)
		}
	}
	return buf
}

// BenchmarkLog is the processor time that the log's codec takes for each
// megabyte of it, and how many times as long as hashing the same bytes that is.
func BenchmarkLog(b *testing.B) {
	for _, mix := range mixes {
		buf := stretch(nil, mix.entries, mix.length)
		hash := hashTime(buf)
		measure := func(name string, f func(b *testing.B)) {
			b.Run(mix.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					f(b)
					n += len(buf)
				}
				b.SetBytes(int64(len(buf)))
				each := float64(b.Elapsed().Nanoseconds()) / float64(n)
				b.ReportMetric(each*1e6, "ns/MB")
				b.ReportMetric(each/hash, "x-xxh3")
			})
		}
		measure("encode", func(*testing.B) { buf = stretch(buf[:0], mix.entries, mix.length) })
		measure("decode", func(b *testing.B) {
			dec := NewDecoder(Base{})
			for rest := buf; len(rest) > 0; {
				_, n, err := dec.Next(rest)
				if err != nil {
					b.Fatal(err)
				}
				rest = rest[n:]
			}
		})
	}
}

// hashTime is how long hashing takes, in ns a byte: the best of some tries.
func hashTime(buf []byte) float64 {
	best := time.Hour
	for range 100 {
		begun := time.Now()
		for range 10 {
			xxh3.Hash(buf)
		}
		best = min(best, time.Since(begun))
	}
	return float64(best.Nanoseconds()) / 10 / float64(len(buf))
}
