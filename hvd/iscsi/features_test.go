package iscsi

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestFeatures asks a target that can do everything, and one that lacks each thing
// in turn. The unit is as it was afterwards.
func TestFeatures(t *testing.T) {
	naa := []byte{0x01, 0x03, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7}
	port := []byte{0x53, 0x94, 0, 4, 'p', 'o', 'r', 't'}
	answers := map[string][]byte{ // by what is asked for
		"page 83": append([]byte{0, 0x83, 0, byte(len(naa) + len(port))}, append(port, naa...)...),
		"page b2": {0, 0xb2, 0, 4, 0, 0xc4, 2, 0},
		"modes":   {23, 0, 0x10, 0, 0x08, 0x12, 0x04, 0},
		"keys":    make([]byte, 8),
		"capable": {0, 8, 0x01, 0x80, 0xea, 1, 0, 0},
		"known":   {}, // commands that are tried
		"cached":  {},
		"same":    {},
	}
	what := func(c []byte) string {
		switch {
		case c[0] == scsiInquiry && c[1] == 1 && c[2] == 0x83:
			return "page 83"
		case c[0] == scsiInquiry && c[1] == 1 && c[2] == 0xb2:
			return "page b2"
		case c[0] == featureModeSense:
			return "modes"
		case c[0] == scsiReserveIn && c[1] == 0:
			return "keys"
		case c[0] == scsiReserveIn && c[1] == 2:
			return "capable"
		case c[0] == scsiCompareAndWrite:
			return "known"
		case c[0] == scsiSyncCache16 || c[0] == scsiSyncCache10:
			return "cached"
		case c[0] == featureWriteSame:
			return "same"
		}
		return ""
	}
	all := Features{
		Inquiry: Inquiry{Vendor: "Fake", Product: "target", Revision: "1", Serial: "one"}, Names: []string{"naa.6001020304050607"},
		CompareAndWrite: Yes, Reservations: Yes, RegistrantsOnly: Yes, KeepsPowerless: Yes, Unmap: Yes, WriteSame: Yes,
		UnmappedZero: Yes, Thin: No, WriteCache: Yes, SyncCache: Yes, ForceAccess: Yes,
		Immediate: 64 << 10, MaxBurst: 256 << 10, MaxSegment: 64 << 10, Queue: 32,
	}
	for _, c := range []struct {
		lacks  string
		change func(*Features)
	}{
		{"", func(*Features) {}},
		{"page 83", func(f *Features) { f.Names = nil }},
		{"page b2", func(f *Features) { f.Unmap, f.UnmappedZero = Unknown, Unknown }},
		{"modes", func(f *Features) { f.WriteCache, f.ForceAccess = Unknown, Unknown }},
		{"keys", func(f *Features) { f.Reservations, f.RegistrantsOnly, f.KeepsPowerless = No, Unknown, Unknown }},
		{"capable", func(f *Features) { f.RegistrantsOnly, f.KeepsPowerless = Unknown, Unknown }},
		{"known", func(f *Features) { f.CompareAndWrite = No }},
		{"cached", func(f *Features) { f.SyncCache = No }},
		{"same", func(f *Features) { f.WriteSame = No }},
	} {
		f := newFake(t)
		f.disk = bytes.Repeat([]byte("data"), 1<<18)
		before := bytes.Clone(f.disk)
		f.intercept = func(fc *fakeConn, h *header, _ []byte) bool {
			if h.op() != opSCSICommand {
				return false
			}
			asked := what(h[32:])
			switch b, ok := answers[asked]; {
			case !ok:
				return false
			case asked == c.lacks:
				fc.status(h.itt(), statusCheckCondition, fixedSense(senseIllegalRequest, 0x20, 0))
			case asked == "cached":
				fc.status(h.itt(), statusGood, nil)
			case len(b) == 0: // the block behind the last one
				fc.status(h.itt(), statusCheckCondition, fixedSense(senseIllegalRequest, 0x21, 0))
			default:
				fc.reply(h, b)
			}
			return true
		}
		s, err := Dial(t.Context(), f.config())
		if err != nil {
			t.Fatal(err)
		}
		want := all
		c.change(&want)
		got, err := s.Features(t.Context())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("without %q: %v; %s", c.lacks, err, cmp.Diff(want, got))
		}
		s.Close()
		if !bytes.Equal(f.disk, before) {
			t.Errorf("without %q: the unit was changed", c.lacks)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add([]byte{0x01, 0x03, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7})
	f.Add([]byte{0x02, 0x01, 0, 200, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, n := range parseNames(b) {
			if len(n) > 4+2*255 {
				t.Fatalf("name of %d bytes", len(n))
			}
		}
	})
}
