package main

import (
	"fmt"

	"github.com/duet-ft/duet/appliance/agent/wire"
)

// System is the machine that the agent runs on.
type System interface {
	// Info describes the machine as it is now.
	Info() (wire.Info, error)
	// Shutdown starts to shut down, by wire.PowerOff or wire.Reboot, and returns
	// without waiting for the end.
	Shutdown(mode string) error
}

// handle answers one request line. What has to happen after the reply is on its
// way is returned as after, or nil.
func handle(sys System, line []byte) (reply []byte, after func() error) {
	value, after, err := execute(sys, line)
	return wire.FormatReply(value, err), after
}

func execute(sys System, line []byte) (value any, after func() error, failed *wire.Error) {
	r, failed := wire.ParseRequest(line)
	if failed != nil {
		return nil, nil, failed
	}
	switch r.Execute {
	case wire.Ping:
		return nil, nil, wire.ParseArguments(r, nil)
	case wire.Information:
		if failed := wire.ParseArguments(r, nil); failed != nil {
			return nil, nil, failed
		}
		info, err := sys.Info()
		if err != nil {
			return nil, nil, &wire.Error{Class: wire.ClassGeneric, Desc: err.Error()}
		}
		return info, nil, nil
	case wire.Shutdown:
		var a wire.ShutdownArguments
		if failed := wire.ParseArguments(r, &a); failed != nil {
			return nil, nil, failed
		}
		if a.Mode != wire.PowerOff && a.Mode != wire.Reboot {
			return nil, nil, &wire.Error{
				Class: wire.ClassBadRequest,
				Desc:  fmt.Sprintf("arguments of shutdown: mode %.40q is neither %q nor %q", a.Mode, wire.PowerOff, wire.Reboot),
			}
		}
		return nil, func() error { return sys.Shutdown(a.Mode) }, nil
	}
	return nil, nil, &wire.Error{
		Class: wire.ClassCommandNotFound,
		Desc:  fmt.Sprintf("no command %.40q: there are ping, info and shutdown", r.Execute),
	}
}
