package iscsi

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Found is a target that a portal knows of.
type Found struct {
	// Target is its iSCSI name.
	Target string
	// Portals are where it can be reached, in the target's order.
	Portals []FoundPortal
}

// FoundPortal is one address of a target.
type FoundPortal struct {
	// Address is host:port.
	Address string
	// Group is the portal group tag: portals of one group can stand in for each
	// other (Config.Second).
	Group int
}

const (
	// maxFound limits the targets of one answer, maxFoundPortals the portals of
	// each.
	maxFound        = 1024
	maxFoundPortals = 64
	// maxTextRounds limits the PDUs of one answer.
	maxTextRounds = 64
)

// Discover asks cfg.Portal which targets it knows: a discovery session with
// SendTargets=All (RFC 7143, section 4.3 and appendix C). cfg.Target isn't used.
// The session is closed again; the whole takes cfg.Timeout at most.
func Discover(ctx context.Context, cfg Config) ([]Found, error) {
	cfg, err := cfg.completeLogin()
	if err != nil {
		return nil, err
	}
	list, err := discover(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("portal %s: %w", cfg.Portal, err)
	}
	return list, nil
}

func discover(ctx context.Context, cfg Config) ([]Found, error) {
	st, err := connect(ctx, cfg, cfg.Portal, true)
	if err != nil {
		return nil, err
	}
	defer st.nc.Close()
	end := deadlineIn(cfg.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := st.nc.SetDeadline(end); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { st.nc.Close() })
	defer stop()
	text, err := st.sendTargets()
	if err != nil {
		return nil, shortNetError(err)
	}
	list, err := parseTargets(text, cfg.Portal)
	if err != nil {
		return nil, err
	}
	// Polite; the answer tells nothing that matters.
	h := header{0: byte(opLogoutRequest) | flagImmediate, 1: flagFinal}
	h.put32(24, st.cmdSN)
	h.put32(28, st.expStatSN)
	if st.framing.write(st.bw, &h, nil) == nil {
		_ = st.bw.Flush()
	}
	return list, nil
}

// sendTargets asks, and puts an answer of several PDUs together: after each that
// isn't the last one, an empty request with the target's tag asks for the next
// (RFC 7143, sections 11.10 and 11.11).
func (st *stream) sendTargets() ([]byte, error) {
	request, tag := keyList{{"SendTargets", "All"}}.encode(), uint32(noTag)
	var text []byte
	for range maxTextRounds {
		h := header{0: byte(opTextRequest) | flagImmediate, 1: flagFinal}
		h.put32(16, 1)
		h.put32(20, tag)
		h.put32(24, st.cmdSN)
		h.put32(28, st.expStatSN)
		if err := st.framing.write(st.bw, &h, request); err != nil {
			return nil, err
		}
		if err := st.bw.Flush(); err != nil {
			return nil, err
		}
		part, next, err := st.readText()
		if err != nil {
			return nil, err
		}
		if len(text)+len(part) > maxText {
			return nil, fmt.Errorf("target lists more than %d bytes of targets", maxText)
		}
		text = append(text, part...)
		if next == noTag {
			return text, nil
		}
		request, tag = nil, next
	}
	return nil, errors.New("target's list of targets doesn't come to an end")
}

// readText reads a Text Response. next is the tag to ask for more with, or
// noTag. A target may ping meanwhile; it gets no answer in so short a session.
func (st *stream) readText() (text []byte, next uint32, err error) {
	for range maxTextRounds {
		var h header
		if err := st.framing.readHeader(st.br, &h); err != nil {
			return nil, 0, err
		}
		data := make([]byte, h.dataLen())
		if err := st.framing.readData(st.br, &h, data); err != nil {
			return nil, 0, err
		}
		switch h.op() {
		case opTextResponse:
			st.expStatSN = h.statSN() + 1
			if h.has(flagFinal) {
				return data, noTag, nil
			}
			if h.transferTag() == noTag {
				return nil, 0, errors.New("target's list of targets is cut off")
			}
			return data, h.transferTag(), nil
		case opNopIn:
		case opReject:
			return nil, 0, rejected(&h, data)
		default:
			return nil, 0, fmt.Errorf("target sends PDU 0x%02x, which makes no sense here", h[0])
		}
	}
	return nil, 0, errors.New("target pings instead of listing its targets")
}

// parseTargets decodes an answer to SendTargets: TargetName, then the addresses
// of that target, again and again. A target without an address is at the portal
// that was asked.
func parseTargets(text []byte, asked string) ([]Found, error) {
	pairs, err := parsePairs(text)
	if err != nil {
		return nil, err
	}
	var list []Found
	for _, kv := range pairs {
		switch kv.key {
		case "TargetName":
			if err := checkName("target", kv.value); err != nil {
				return nil, err
			}
			if len(list) == maxFound {
				return nil, fmt.Errorf("more than %d targets are listed", maxFound)
			}
			list = append(list, Found{Target: kv.value})
		case "TargetAddress":
			if len(list) == 0 {
				return nil, errors.New("target's list begins with an address instead of a name")
			}
			t := &list[len(list)-1]
			if len(t.Portals) == maxFoundPortals {
				return nil, fmt.Errorf("more than %d portals of %s are listed", maxFoundPortals, t.Target)
			}
			_, group, _ := strings.Cut(kv.value, ",")
			tag, err := strconv.ParseUint(group, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("target's address %.60q has no portal group", kv.value)
			}
			t.Portals = append(t.Portals, FoundPortal{targetAddress(kv.value), int(tag)})
		}
	}
	for i := range list {
		if list[i].Portals == nil {
			list[i].Portals = []FoundPortal{{asked, 1}}
		}
	}
	return list, nil
}
