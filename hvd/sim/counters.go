package sim

import (
	"fmt"
	"reflect"
	"strings"
)

// Counters say what happened in a history.
type Counters struct {
	Events, Kills, Pauses, Cuts, VolumeFaults, Divergences int

	Switchovers, TakeOvers, GivenUp int // roles exchanged, as either side saw it; switchovers that were not

	Boots, GoLives, Seedings, Pairings, Halts int

	Effects, Acknowledged int
	LateSwaps             int // COMPARE AND WRITE that took effect after its error
	LostReplies           int // COMPARE AND WRITE that ended with an error
	DivergedLive          int // secondaries that went live where their execution differed
	Stale                 int // effects that a former primary let go late
	FencedWrites          int // writes that a reservation refused
	DiskErrors            int // reads and writes that the medium failed
	TornWrites            int // writes that changed a part of their block
	Overtaken             int // heartbeats that came behind a later one

	RefReads, DataReads int // reads in the log, by reference and with their data
	AskedReads          int // references that a secondary couldn't read by itself
	CutShort            int // logs that ended for a secondary where it couldn't read a reference

	Coverage Coverage
}

// Add adds the counts of another history.
func (c *Counters) Add(o Counters) {
	to, from := reflect.ValueOf(c).Elem(), reflect.ValueOf(o)
	for i := range to.NumField() {
		if to.Field(i).Kind() == reflect.Int {
			to.Field(i).SetInt(to.Field(i).Int() + from.Field(i).Int())
		}
	}
	for k := range c.Coverage {
		for r := range c.Coverage[k] {
			c.Coverage[k][r] += o.Coverage[k][r]
		}
	}
}

// String is each count with its name, but for the coverage.
func (c Counters) String() string {
	var b strings.Builder
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Int {
			fmt.Fprintf(&b, "%s:%d ", v.Type().Field(i).Name, f.Int())
		}
	}
	return strings.TrimSpace(b.String())
}

// Missing names what never happened.
func (c Counters) Missing() []string {
	var names []string
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Int && f.Int() == 0 {
			names = append(names, v.Type().Field(i).Name)
		}
	}
	for k, counts := range c.Coverage {
		total := 0
		for _, n := range counts {
			total += n
		}
		if total == 0 {
			names = append(names, faultNames[k])
		}
	}
	return names
}
