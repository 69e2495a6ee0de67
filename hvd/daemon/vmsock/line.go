package vmsock

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/duet-ft/duet/hvd/api"
)

const (
	// eventPrefix begins a line that is an event.
	eventPrefix = "event "
	// maxEventLine is the length of the longest such line, in bytes: hvd/daemon/supervise passes on no longer one.
	maxEventLine = 4 << 10
)

// EventLine is the line by which a VM's process tells of an event on its standard error: "event " and the event's JSON. It
// reaches the daemon even if the process dies next. An event that is too long for a line is told for people only; the
// daemon gets it when it asks for the events.
func EventLine(e api.Event) string {
	b, err := json.Marshal(e)
	if err != nil || len(eventPrefix)+len(b) > maxEventLine {
		return spoken(e)
	}
	return eventPrefix + string(b)
}

// ParseLine reads a line that a VM's process wrote. text is what it says for people; e is nil if it is no event.
func ParseLine(line string) (e *api.Event, text string) {
	rest, ok := strings.CutPrefix(line, eventPrefix)
	if !ok {
		return nil, line
	}
	e = new(api.Event)
	if err := json.Unmarshal([]byte(rest), e); err != nil {
		return nil, line
	}
	return e, spoken(*e)
}

func spoken(e api.Event) string { return fmt.Sprintf("%s: %s", e.Role, e.What) }
