package volume

import (
	"errors"
	"strings"
	"testing"
)

const webJSON = `{"name":"web","memory_mib":512,"disks":[{"name":"root","size_bytes":10485760}],"output":"received","kernel":"untouched","cmdline":"quiet"}`

func TestParseDefinition(t *testing.T) {
	d, err := ParseDefinition([]byte(webJSON))
	must(t, err)
	if d.Name != "web" || d.Slot != AutoSlot || d.Output != OutputReceived || d.Kernel != KernelUntouched || d.Cmdline != "quiet" {
		t.Errorf("%+v", d)
	}
	for in, want := range map[string]string{
		`{"name":"web","memory":512}`:                    `VM "web": invalid VM definition: unknown field "memory"`,
		`{"name":"web","disks":[{"name":"a","size":1}]}`: `unknown field "size"`,
		`{"name":"web"} {}`:                              "something after the end",
		`{"name":3}`:                                     `field "name" must not be a JSON number`,
		`{"name":"web","disks":[{"size_bytes":"1"}]}`:    `field "disks.size_bytes" must not be a JSON string`,
		`[]`:       "must be a JSON object, and not a JSON array",
		`{"name":`: "ends too early",
		``:         "invalid VM definition: it is no JSON: it ends too early",
	} {
		if _, err := ParseDefinition([]byte(in)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
}

func TestCheckDefinition(t *testing.T) {
	good := vm("web", 10)
	good, err := good.complete(nil)
	must(t, err)
	must(t, good.check())
	for _, c := range []struct {
		want   string
		change func(*Definition)
	}{
		{"name:", func(d *Definition) { d.Name = "" }},
		{"name:", func(d *Definition) { d.Name = "Web" }},
		{"name:", func(d *Definition) { d.Name = "9web" }},
		{"name:", func(d *Definition) { d.Name = strings.Repeat("a", 33) }},
		{"uuid", func(d *Definition) { d.UUID = "1" }},
		{"slot 64", func(d *Definition) { d.Slot = 64 }},
		{"memory_mib 1", func(d *Definition) { d.MemoryMiB = 1 }},
		{"mac", func(d *Definition) { d.MAC = "01:00:00:00:00:01" }},
		{"mac", func(d *Definition) { d.MAC = "hello" }},
		{"cid 2", func(d *Definition) { d.CID = 2 }},
		{"output", func(d *Definition) { d.Output = "maybe" }},
		{"cmdline", func(d *Definition) { d.Cmdline = "a\nb" }},
		{"kernel \"new\"", func(d *Definition) { d.Kernel = "new" }},
		{"0 disks", func(d *Definition) { d.Disks = nil }},
		{"two disks", func(d *Definition) { d.Disks = append(d.Disks, d.Disks[0]) }},
		{"size_bytes 5", func(d *Definition) { d.Disks = []DiskDef{{Name: "root", SizeBytes: 5}} }},
		{"disk \"A\"", func(d *Definition) { d.Disks = []DiskDef{{Name: "A", SizeBytes: 1 << 20}} }},
	} {
		d := good
		c.change(&d)
		if err := d.check(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestTwoWithOneName(t *testing.T) {
	v := open(t, newMemory(t, 512).Session("a"))
	first, err := v.create(t.Context(), vm("web", 10))
	must(t, err)
	for _, c := range []struct {
		want   string
		change func(*Definition)
	}{
		{`VM "web": name web is taken by VM "web"`, func(d *Definition) { d.Name = "web" }},
		{"slot 0 is taken", func(d *Definition) { d.Slot = 0 }},
		{"MAC address", func(d *Definition) { d.MAC = strings.ToUpper(first.MAC) }},
		{"CID 3", func(d *Definition) { d.CID = 3 }},
		{"UUID", func(d *Definition) { d.UUID = first.UUID }},
	} {
		d := vm("other", 10)
		c.change(&d)
		if _, err := v.create(t.Context(), d); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	for i := range MaxVMs - 1 {
		_, err := v.create(t.Context(), vm("v"+strings.Repeat("x", i%20)+string(rune('a'+i/20)), 1))
		must(t, err)
	}
	if _, err := v.create(t.Context(), vm("last", 1)); !errors.Is(err, ErrFull) {
		t.Errorf("VM 65: %v", err)
	}
}
