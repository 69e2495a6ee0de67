package kallsyms

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/boot/bzimage"
)

const text = 0xffffffff81000000

// form is how a kernel's version lays its tables out.
type form struct {
	name    string
	first   bool // offsets and relative_base before num_syms
	wide    bool // num_syms and markers of 8 bytes
	seqs    int  // bytes per symbol of seqs_of_names before the tokens; at the end if negative
	align   int
	coding  string // "percpu", "relative" or "place"
	bigName bool   // a name whose length takes two bytes
}

var forms = []form{
	{name: "4.19", first: true, wide: true, align: 8, coding: "percpu"},
	{name: "4.19 without absolute per CPU", first: true, wide: true, align: 8, coding: "relative"},
	{name: "5.10", first: true, align: 8, coding: "percpu"},
	{name: "6.1", first: true, align: 8, coding: "percpu", bigName: true},
	{name: "6.2", first: true, align: 8, coding: "percpu", bigName: true, seqs: 4},
	{name: "6.4", align: 8, coding: "percpu", bigName: true, seqs: -3},
	{name: "6.15", align: 8, coding: "relative", bigName: true, seqs: -3},
	{name: "7.1", align: 4, coding: "place", bigName: true, seqs: -3},
}

// names are 700 made-up symbols; the first of them are variables per CPU where
// the coding has such.
func symbols(f form) []Symbol {
	var list []Symbol
	if f.coding == "percpu" {
		for i := range 20 {
			list = append(list, Symbol{Name: fmt.Sprint("percpu_", i), Type: 'A', Addr: uint64(i) * 64})
		}
	}
	for i := range 700 {
		s := Symbol{Name: fmt.Sprint("sys_", i, "_xyz"), Type: "tTdB"[i%4], Addr: text + uint64(i/2*2)*16}
		switch {
		case i == 333:
			s = Symbol{Name: "zap_pte_range.isra.0", Type: 't', Addr: s.Addr}
		case i == 334:
			s = Symbol{Name: "ptep_test_and_clear_young", Type: 'T', Addr: s.Addr}
		case i == 500 && f.bigName:
			s.Name = strings.Repeat("Q", 400)
		}
		list = append(list, s)
	}
	for i := range list {
		list[i].End = list[i].Addr
		if n := slices.IndexFunc(list, func(o Symbol) bool { return o.Addr > list[i].Addr }); n >= 0 {
			list[i].End = list[n].Addr
		}
	}
	return list
}

// build lays tables out as scripts/kallsyms.c does, at an address, after some
// other read-only data. It returns the offsets of some of them, too.
func build(f form, list []Symbol, at uint64) (b []byte, labels map[string]int) {
	labels = map[string]int{}
	tokens := make([]string, 256)
	for c := range 128 {
		tokens[c] = string(rune(c))
	}
	tokens[0] = ""
	tokens['%'], tokens[200], tokens[255] = "sys_", "_xyz", "percpu_"
	squeeze := strings.NewReplacer("sys_", "%", "_xyz", "\xc8", "percpu_", "\xff")

	b = bytes.Repeat([]byte("some other data, 0\x001\x002\x003\x00 and so on\n"), 30)
	align := func(n int) {
		for (at+uint64(len(b)))%uint64(n) != 0 {
			b = append(b, 0)
		}
	}
	number := func(v int) {
		align(f.align)
		if f.wide {
			b = le.AppendUint64(b, uint64(v))
		} else {
			b = le.AppendUint32(b, uint32(v))
		}
	}
	offsets := func() {
		align(f.align)
		for _, s := range list {
			switch {
			case f.coding == "place":
				b = le.AppendUint32(b, uint32(s.Addr-(at+uint64(len(b)))))
			case f.coding == "percpu" && s.Addr >= text:
				b = le.AppendUint32(b, uint32(text-1-s.Addr))
			case f.coding == "percpu":
				b = le.AppendUint32(b, uint32(s.Addr))
			default:
				b = le.AppendUint32(b, uint32(s.Addr-text))
			}
		}
		if f.coding != "place" {
			align(f.align)
			b = le.AppendUint64(b, text)
		}
	}
	seqs := func(n int) {
		align(f.align)
		for i := range list {
			b = append(b, le.AppendUint32(nil, uint32(i*7%len(list)))[:n]...)
		}
	}
	if f.first {
		offsets()
	}
	number(len(list))
	align(f.align)
	start := len(b)
	labels["name"] = start
	var markers []int
	for i, s := range list {
		if i%256 == 0 {
			markers = append(markers, len(b)-start)
		}
		name := squeeze.Replace(string(s.Type) + s.Name)
		if len(name) > 127 {
			b = append(b, byte(len(name))|0x80)
			b = append(b, byte(len(name)>>7))
		} else {
			b = append(b, byte(len(name)))
		}
		b = append(b, name...)
	}
	align(f.align)
	for _, m := range markers {
		number(m)
	}
	labels["marker"] = len(b) - 4
	if f.seqs > 0 {
		seqs(f.seqs)
	}
	align(f.align)
	var index []byte
	start = len(b)
	labels["token"] = start + 300
	for _, t := range tokens {
		index = le.AppendUint16(index, uint16(len(b)-start))
		b = append(append(b, t...), 0)
	}
	align(f.align)
	b = append(b, index...)
	labels["token index"] = len(b) - 10
	if !f.first {
		offsets()
	}
	if f.seqs < 0 {
		seqs(-f.seqs)
	}
	return append(b, "more data"...), labels
}

const tables = text + 0x100004

func segmentsOf(b []byte) []Segment {
	return []Segment{{Addr: text, Data: make([]byte, 4096)}, {Addr: tables, Data: b}}
}

func TestForms(t *testing.T) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			want := symbols(f)
			b, _ := build(f, want, tables)
			table, err := Find(segmentsOf(b))
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Collect(table.All()); table.Len() != len(want) || !slices.Equal(got, want) {
				t.Errorf("%d symbols, first %+v\nwant %d, first %+v", len(got), got[:3], len(want), want[:3])
			}
			got := table.Functions(func(base string) bool {
				return base == "zap_pte_range" || base == "ptep_test_and_clear_young" || base == "sys_2_xyz"
			})
			if len(got) != 2 || got[0].Name != "zap_pte_range.isra.0" || got[1].Type != 'T' || got[1].End != got[1].Addr+32 {
				t.Errorf("functions %+v", got)
			}
		})
	}
}

// TestDamaged breaks each table in turn.
func TestDamaged(t *testing.T) {
	for _, f := range forms {
		b, labels := build(f, symbols(f), tables)
		for what, at := range labels {
			bad := bytes.Clone(b)
			bad[at] ^= 0x81
			if _, err := Find(segmentsOf(bad)); !errors.Is(err, ErrNone) {
				t.Errorf("%s: a broken %s: %v", f.name, what, err)
			}
			if _, err := Find(segmentsOf(b[:at])); !errors.Is(err, ErrNone) {
				t.Errorf("%s: cut at a %s: %v", f.name, what, err)
			}
		}
	}
	unsorted := symbols(forms[2])
	slices.SortFunc(unsorted[100:], func(a, b Symbol) int { return cmp.Compare(b.Addr, a.Addr) })
	b, _ := build(forms[2], unsorted, tables)
	if _, err := Find(segmentsOf(b)); !errors.Is(err, ErrNone) {
		t.Errorf("addresses that fall: %v", err)
	}
}

// TestBounded gives much that looks like the beginning of a table.
func TestBounded(t *testing.T) {
	b := bytes.Repeat(append([]byte{0, 1, 0, 0, 1, 'a'}, digits...), 1<<16)
	if _, err := Find([]Segment{{Addr: text, Data: b}}); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
}

// TestDuetKernel reads the hosts' own kernel, which is at hand.
func TestDuetKernel(t *testing.T) {
	packed, err := os.ReadFile("../../../image/kernel/vmlinuz")
	if err != nil {
		t.Fatal(err)
	}
	b, err := bzimage.Unpack(packed)
	if err != nil {
		t.Fatal(err)
	}
	// Read-only data follows the text in the first segment.
	table, err := Find([]Segment{{Addr: text, Data: b[0x200000:]}})
	if err != nil {
		t.Fatal(err)
	}
	got := table.Functions(func(base string) bool { return base == "startup_64" || base == "ptep_test_and_clear_young" })
	entry := le.Uint64(b[24:]) // of the ELF file, physical
	if table.Len() < 20000 || len(got) != 2 || got[0].Name != "startup_64" || got[0].Addr-linkBase != entry {
		t.Errorf("%d symbols, %+v", table.Len(), got)
	}
}

func FuzzFind(f *testing.F) {
	for _, form := range forms {
		b, _ := build(form, symbols(form)[:300], tables)
		f.Add(b, []byte{})
		f.Add(b, []byte{0x10, 0, 0, 0xff, 0, 8, 0, 1})
	}
	f.Fuzz(func(t *testing.T, b, patch []byte) {
		b = bytes.Clone(b)
		for ; len(patch) >= 4 && len(b) > 0; patch = patch[4:] {
			b[int(le.Uint32(patch)&0xffffff)%len(b)] = patch[3]
		}
		table, err := Find([]Segment{{Addr: tables, Data: b}})
		if err != nil {
			return
		}
		n := 0
		for s := range table.All() {
			if n++; s.End < s.Addr || len(s.Name) > maxName {
				t.Fatalf("%+v", s)
			}
		}
		if n > len(b) {
			t.Fatal("more symbols than bytes")
		}
	})
}
