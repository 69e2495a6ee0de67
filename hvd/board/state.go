package board

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/duet-ft/duet/hvd/virtio"
)

// stateVersion changes when the document's meaning does.
const stateVersion = 4

// document is the state of a board as JSON.
type document struct {
	Version int
	Now     uint64 // guest time in ns
	Pins    uint32 // slots that drive their interrupt pin
	Devices []deviceState
}

type deviceState struct {
	Name  string
	State json.RawMessage
}

// part is a device under its name in the document.
type part struct {
	name      string
	dev       validator
	transport *virtio.Transport // of a virtio device
}

type validator interface{ Validate() error }

// parts lists the devices in the order of the document.
func (d *devices) parts() []part {
	p := []part{
		{name: "pic", dev: d.pic},
		{name: "pit", dev: d.pit},
		{name: "apic", dev: d.apic},
		{name: "uart", dev: d.uart},
		{name: "rtc", dev: d.rtc},
		{name: "pm", dev: d.pm},
		{name: "pci", dev: d.pci},
	}
	if d.net != nil {
		p = append(p, part{"net", d.net, &d.net.Transport})
	}
	if d.vsock != nil {
		p = append(p, part{"vsock", d.vsock, &d.vsock.Transport})
	}
	for i, disk := range d.disks {
		p = append(p, part{fmt.Sprintf("disk%d", i), disk, &disk.Transport})
	}
	return p
}

// State returns the state of all devices as one JSON document, the same for
// the same state. Effects aren't in it: take them first, or it is an error.
func (b *Board) State() ([]byte, error) {
	if len(b.d.effects) > 0 {
		return nil, fmt.Errorf("state of a board with %d effects not taken", len(b.d.effects))
	}
	return b.d.state()
}

func (d *devices) state() ([]byte, error) {
	doc := document{Version: stateVersion, Now: d.now, Pins: d.pins}
	for _, p := range d.parts() {
		raw, err := json.Marshal(p.dev)
		if err != nil {
			return nil, fmt.Errorf("state of %s: %w", p.name, err)
		}
		doc.Devices = append(doc.Devices, deviceState{p.name, raw})
	}
	return json.Marshal(doc)
}

// Restore sets the state of all devices from a document of State. Guest memory
// must be restored first: the queues' addresses are checked against it. After an
// error the board is as it was.
func (b *Board) Restore(state []byte) error {
	d, err := newDevices(b.cfg, b.mem)
	if err != nil {
		return err
	}
	if err = d.restore(state); err == nil {
		err = checkFlag(d.apic, b.mem)
	}
	if err != nil {
		return fmt.Errorf("restore the devices' state: %w", err)
	}
	b.d = d
	return nil
}

func (d *devices) restore(state []byte) error {
	var doc document
	if err := json.Unmarshal(state, &doc); err != nil {
		return err
	}
	if doc.Version != stateVersion {
		return fmt.Errorf("format version %d, this program has %d", doc.Version, stateVersion)
	}
	d.now, d.pins = doc.Now, doc.Pins
	parts := d.parts()
	if len(doc.Devices) != len(parts) {
		return fmt.Errorf("%d devices, this machine has %d", len(doc.Devices), len(parts))
	}
	for i, p := range parts {
		if doc.Devices[i].Name != p.name {
			return fmt.Errorf("device %q where this machine has %q", doc.Devices[i].Name, p.name)
		}
		if err := json.Unmarshal(doc.Devices[i].State, p.dev); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if err := p.dev.Validate(); err != nil {
			return err
		}
	}
	return d.same(state)
}

// same makes sure that nothing in the document was unknown, missing or cut: the
// state must give the document that it came from.
func (d *devices) same(state []byte) error {
	again, err := d.state()
	if err != nil {
		return err
	}
	want, err := generic(state)
	if err != nil {
		return err
	}
	got, err := generic(again)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(want, got) {
		return errors.New("fields are missing, unknown or out of range")
	}
	return nil
}

// generic decodes a document without knowing its fields; numbers stay exact.
func generic(doc []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}
