package survey

import (
	"errors"
	"fmt"
	"strings"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/volume"
)

// table collects rows, and what keeps a pair from working.
type table struct {
	rows []api.ReportRow
	bad  []string // why no pair can work, one line each
	weak []string // what a pair can do without
}

func (t *table) row(name, value string) {
	if value != "" {
		t.rows = append(t.rows, api.ReportRow{Name: name, Value: value})
	}
}

// must is a row about what a pair needs; trouble is what is wrong, or empty.
func (t *table) must(name, value, trouble string) {
	t.rows = append(t.rows, api.ReportRow{Name: name, Value: value, Trouble: trouble})
	if trouble != "" {
		t.bad = append(t.bad, trouble)
	}
}

// should is a row about what a pair can do without.
func (t *table) should(name, value, trouble string) {
	t.rows = append(t.rows, api.ReportRow{Name: name, Value: value, Trouble: trouble})
	if trouble != "" {
		t.weak = append(t.weak, trouble)
	}
}

// unless is trouble where an answer isn't yes.
func unless(a iscsi.Answer, trouble string) string {
	if a == iscsi.Yes {
		return ""
	}
	return trouble
}

// Report judges the findings.
func (f Findings) Report() api.Report {
	t := &table{}
	if f.Features != nil {
		f.identity(t)
	}
	size := ""
	if f.BlockSize != 512 && f.BlockSize != 4096 {
		size = "blocks of 512 or 4096 bytes are needed"
	}
	t.must("block size", fmt.Sprintf("%d bytes", f.BlockSize), size)
	t.row("capacity", sized(f.Blocks*uint64(f.BlockSize)))
	if f.Features != nil {
		f.abilities(t)
		f.writers(t)
	}
	f.metadata(t)
	for _, vm := range f.VMs {
		if vm.Fault != "" {
			t.must("VM "+vm.Name, vm.State, vm.Fault)
		} else {
			t.should("VM "+vm.Name, vm.State, vm.Wait)
		}
	}
	r := api.Report{Rows: t.rows, OK: len(t.bad) == 0}
	switch {
	case len(t.bad) == 1:
		r.Verdict = "no pair can work with this volume as it is: " + t.bad[0]
	case len(t.bad) > 1:
		r.Verdict = fmt.Sprintf("no pair can work with this volume as it is, for %d reasons; the first: %s", len(t.bad), t.bad[0])
	case len(t.weak) > 0:
		r.Verdict = "a pair can work with this volume, but " + strings.Join(t.weak, ", and ")
	default:
		r.Verdict = "a pair can work with this volume"
	}
	return r
}

func (f Findings) identity(t *table) {
	x := f.Features
	t.row("portal", f.Portal)
	t.row("target", fmt.Sprintf("%s, LUN %d", f.Target, f.LUN))
	t.row("vendor, product", strings.TrimSpace(fmt.Sprintf("%s %s %s", x.Vendor, x.Product, x.Revision)))
	serial := ""
	if x.Serial == "" && len(x.Names) == 0 {
		serial = "hosts can't tell whether they see the same unit"
	}
	t.should("serial number", orNone(x.Serial), serial)
	t.row("unit's names", strings.Join(x.Names, ", "))
	digests := "none"
	switch {
	case x.HeaderDigest && x.DataDigest:
		digests = "header and data"
	case x.HeaderDigest:
		digests = "header"
	case x.DataDigest:
		digests = "data"
	}
	t.row("digests", digests)
	t.row("limits", fmt.Sprintf("%d commands at once, bursts of %s, PDUs of %s, immediate data %s",
		x.Queue, sized(uint64(x.MaxBurst)), sized(uint64(x.MaxSegment)), sized(uint64(x.Immediate))))
}

func (f Findings) abilities(t *table) {
	x := f.Features
	t.must("COMPARE AND WRITE", x.CompareAndWrite.String(), unless(x.CompareAndWrite, "without COMPARE AND WRITE nothing decides which host may run a VM"))
	t.must("persistent reservations", x.Reservations.String(), unless(x.Reservations, "without persistent reservations a dead host's late writes can't be kept out"))
	if x.Reservations == iscsi.Yes {
		trouble := ""
		if x.RegistrantsOnly == iscsi.No {
			trouble = "the target says that it has no reservations of the type that is needed: write exclusive, registrants only"
		}
		t.must("type write exclusive, registrants only", x.RegistrantsOnly.String(), trouble)
		t.row("reservations last without power", x.KeepsPowerless.String())
	}
	cache := ""
	if x.SyncCache != iscsi.Yes && x.WriteCache != iscsi.No {
		cache = "there is a write cache, or may be one, and no SYNCHRONIZE CACHE: a target that loses power loses acknowledged writes"
	}
	t.must("SYNCHRONIZE CACHE", x.SyncCache.String(), cache)
	t.row("write cache", x.WriteCache.String())
	t.row("FUA", x.ForceAccess.String())
	t.should("WRITE SAME", x.WriteSame.String(), unless(x.WriteSame, "new disks are zeroed by sending zeros, since there is no WRITE SAME"))
	unmap := x.Unmap.String()
	if x.Unmap == iscsi.Yes {
		unmap += map[iscsi.Answer]string{
			iscsi.Yes: ", blocks read as zeros then", iscsi.No: ", blocks hold anything then", iscsi.Unknown: ", what blocks hold then isn't said",
		}[x.UnmappedZero]
	}
	t.row("UNMAP", unmap)
	thin := ""
	if x.Thin == iscsi.Yes {
		thin = "the unit is thin provisioned, so writes fail when its pool is full: watch the pool"
	}
	t.should("thin provisioned", x.Thin.String(), thin)
}

// writers are who may write now.
func (f Findings) writers(t *table) {
	if f.Features.Reservations != iscsi.Yes {
		return
	}
	switch f.Reservation {
	case 0:
		t.row("reservation", "none: everybody may write")
	case iscsi.WriteExclusiveRegistrantsOnly:
		t.row("reservation", "write exclusive, registrants only")
	default:
		t.must("reservation", fmt.Sprintf("type %d", f.Reservation), fmt.Sprintf("somebody holds a reservation of type %d, which Duet doesn't use", f.Reservation))
	}
	for _, r := range f.Registered {
		who := r.Port.Initiator
		if who == "" {
			who = fmt.Sprintf("key %016x", r.Key)
		} else if !r.Port.AnyISID {
			who += fmt.Sprintf(", ISID %x", r.Port.ISID)
		}
		if r.Holder {
			who += ", holds the reservation"
		}
		t.row("registered", who)
	}
}

func (f Findings) metadata(t *table) {
	h := f.Health
	if h == nil {
		line := "can't be read"
		if f.HealthErr != nil {
			line = api.OneLine(f.HealthErr.Error())
		}
		value := "unknown"
		if errors.Is(f.HealthErr, volume.ErrNotDuet) {
			value, line = "not Duet's", "the volume isn't formatted for Duet: hvd volume format does that, if it's empty"
		}
		t.must("volume", value, line)
		return
	}
	t.row("volume", h.ID.String())
	for _, p := range h.Pieces {
		where := fmt.Sprintf("good, block %d", p.LBA)
		if p.Generation > 0 {
			where += fmt.Sprintf(", generation %d", p.Generation)
		}
		switch {
		case p.Fault == "":
			t.row(p.Name, where)
		case p.Repairable:
			t.should(p.Name, fmt.Sprintf("damaged, block %d", p.LBA), fmt.Sprintf("%s is damaged (%s); another copy has it: a host repairs it within two minutes, \"hvd volume repair\" now", p.Name, p.Fault))
		default:
			t.must(p.Name, fmt.Sprintf("damaged, block %d", p.LBA), fmt.Sprintf("%s is damaged (%s)", p.Name, p.Fault))
		}
	}
	if h.Err != nil {
		t.must("VM definitions", "can't be used", h.Err.Error())
		return
	}
	if f.HealthErr != nil {
		t.must("VM definitions", "can't be used", f.HealthErr.Error())
	}
	if h.Locked != "" {
		t.row("being changed", "by host "+h.Locked)
	}
	for _, p := range h.Parts {
		t.row(fmt.Sprintf("partition %d", p.Number), fmt.Sprintf("%s, %s", p.Name, sized(p.Bytes)))
	}
	t.row("free", fmt.Sprintf("%s, of them %s in one piece", sized(h.Free), sized(h.Largest)))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// sized is a number of bytes for people: exact where it is a round one.
func sized(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
