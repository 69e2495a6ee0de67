package sim

import "reflect"

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
}

// Add adds the counts of another history.
func (c *Counters) Add(o Counters) {
	to, from := reflect.ValueOf(c).Elem(), reflect.ValueOf(o)
	for i := range to.NumField() {
		to.Field(i).SetInt(to.Field(i).Int() + from.Field(i).Int())
	}
}

// Missing names what never happened.
func (c Counters) Missing() []string {
	var names []string
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if v.Field(i).Int() == 0 {
			names = append(names, v.Type().Field(i).Name)
		}
	}
	return names
}
