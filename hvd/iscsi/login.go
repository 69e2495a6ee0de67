package iscsi

import (
	"errors"
	"fmt"
	"strconv"
)

// Stages of a login (RFC 7143, section 11.12.3).
const (
	stageSecurity    = 0
	stageOperational = 1
	stageFull        = 3
)

// maxLoginSteps limits the ping-pong of a login.
const maxLoginSteps = 24

// What we offer in the operational stage. Sizes are in bytes.
const (
	ourMaxRecv    = 256 << 10
	ourMaxBurst   = 1 << 20
	ourFirstBurst = 256 << 10
)

// params are the values both sides ended up with.
type params struct {
	headerDigest, dataDigest bool
	immediateData            bool
	targetMaxRecv            int // data bytes of one PDU to the target
	maxBurst, firstBurst     int // bytes
	portalGroup              int // tag of the target portal group; unknownGroup if the target doesn't say
}

// unknownGroup is no portal group tag: those have 16 bits.
const unknownGroup = -1

// defaultParams hold for keys that the target doesn't mention (RFC 7143,
// section 13).
func defaultParams() params {
	return params{immediateData: true, targetMaxRecv: 8192, maxBurst: 256 << 10, firstBurst: 64 << 10, portalGroup: unknownGroup}
}

// immediateLimit is how many bytes may ride in the command PDU itself.
func (p params) immediateLimit() int {
	if !p.immediateData {
		return 0
	}
	return min(p.firstBurst, p.targetMaxRecv)
}

// loginStep is one Login Request or Response without its sequence numbers.
type loginStep struct {
	current, next byte // stages
	transit       bool
	more          bool // text goes on in the next PDU
	text          []byte
	class, detail byte // Response only
}

// loginMachine negotiates: it turns the target's answer into our next request.
// It does no I/O.
//
//	security (offer) --CHAP chosen--> challenge --> answer --+--> operational --> done
//	                 --None chosen---------------------------+
//
// With mutual CHAP the answer carries a challenge of ours, and the target's next
// words must answer it. A discovery session (RFC 7143, section 4.3) names no
// target and offers the keys that it may.
type loginMachine struct {
	cfg       Config
	discovery bool
	ours      chapChallenge // what the target has to answer in mutual CHAP
	p         params
	state     loginState
	pending   []byte // text of continued answers
	steps     int
	redirect  string // TargetAddress of a redirection
}

type loginState byte

const (
	loginStart loginState = iota
	loginOffered
	loginAskedChallenge
	loginAnswered
	loginWaitOperational // authentication is over, the transition is not
	loginNegotiating
	loginDone
)

// newLogin prepares a login. challenge has to be unpredictable.
func newLogin(cfg Config, discovery bool, challenge chapChallenge) *loginMachine {
	return &loginMachine{cfg: cfg, discovery: discovery, ours: challenge, p: defaultParams()}
}

// first is the request that opens the login.
func (m *loginMachine) first() loginStep {
	m.state = loginOffered
	method := "None"
	switch {
	case m.mutual():
		method = "CHAP"
	case m.cfg.User != "":
		method = "CHAP,None"
	}
	text := keyList{{"InitiatorName", m.cfg.Initiator}}
	if m.discovery {
		text = append(text, keyValue{"SessionType", "Discovery"})
	} else {
		text = append(text, keyValue{"TargetName", m.cfg.Target}, keyValue{"SessionType", "Normal"})
	}
	text = append(text, keyValue{"AuthMethod", method})
	return loginStep{current: stageSecurity, next: stageOperational, transit: m.cfg.User == "", text: text.encode()}
}

// mutual says that the target has to prove itself.
func (m *loginMachine) mutual() bool { return m.cfg.TargetSecret != "" }

// answer takes the target's answer. When done is false, req is to be sent.
func (m *loginMachine) answer(r loginStep) (req loginStep, done bool, err error) {
	if m.steps++; m.steps > maxLoginSteps {
		return req, false, errors.New("login doesn't come to an end")
	}
	if r.class == 1 {
		return req, false, m.moved(r)
	}
	if r.class != 0 {
		refused := &LoginError{r.class, r.detail}
		if m.mutual() && refused.Is(ErrAuth) {
			return req, false, fmt.Errorf("%w, or the target isn't set up for mutual CHAP", refused)
		}
		return req, false, refused
	}
	if len(m.pending)+len(r.text) > maxText {
		return req, false, errors.New("target's login text is too long")
	}
	m.pending = append(m.pending, r.text...)
	if r.more {
		return loginStep{current: r.current, next: r.current}, false, nil
	}
	keys, err := parseKeys(m.pending)
	m.pending = nil
	if err != nil {
		return req, false, err
	}
	if m.p.portalGroup, err = keys.number("TargetPortalGroupTag", 0, 1<<16-1, m.p.portalGroup); err != nil {
		return req, false, err
	}
	switch m.state {
	case loginOffered:
		return m.chooseMethod(keys, r)
	case loginAskedChallenge:
		return m.challenge(keys)
	case loginAnswered:
		if m.mutual() {
			if err := m.ours.check(keys, m.cfg.TargetUser, m.cfg.TargetSecret); err != nil {
				return req, false, err
			}
		}
		return m.authenticated(r)
	case loginWaitOperational:
		return m.authenticated(r)
	case loginNegotiating:
		return m.negotiated(keys, r)
	}
	return req, false, errors.New("login: answer without a question")
}

func (m *loginMachine) moved(r loginStep) error {
	keys, err := parseKeys(r.text)
	if err != nil {
		return err
	}
	addr, ok := keys.get("TargetAddress")
	if !ok {
		return errors.New("target says that it moved, but not where to")
	}
	m.redirect = addr
	return errRedirect
}

// errRedirect is answered when the login has to go on at loginMachine.redirect.
var errRedirect = errors.New("target moved")

func (m *loginMachine) chooseMethod(keys keyList, r loginStep) (loginStep, bool, error) {
	method, ok := keys.get("AuthMethod")
	switch {
	case method == "CHAP" && m.cfg.User != "":
		m.state = loginAskedChallenge
		text := keyList{{"CHAP_A", chapMD5}}.encode()
		return loginStep{current: stageSecurity, next: stageSecurity, text: text}, false, nil
	case method == "Reject" || method == "CHAP":
		if m.cfg.User == "" {
			return loginStep{}, false, errors.New("target wants a CHAP user and password, and none is given")
		}
		return loginStep{}, false, errors.New("target accepts neither CHAP nor a login without password")
	case ok && method != "None":
		return loginStep{}, false, fmt.Errorf("target wants authentication method %.40s; only CHAP is known", method)
	case m.mutual():
		return loginStep{}, false, fmt.Errorf("%w (it wants no authentication, so it can't do mutual CHAP)", ErrImpostor)
	}
	return m.authenticated(r)
}

func (m *loginMachine) challenge(keys keyList) (loginStep, bool, error) {
	response, err := chapAnswer(keys, m.cfg.Secret)
	if err != nil {
		return loginStep{}, false, err
	}
	m.state = loginAnswered
	text := keyList{{"CHAP_N", m.cfg.User}, {"CHAP_R", response}}
	if m.mutual() {
		text = append(text, m.ours.keys()...)
	}
	return loginStep{current: stageSecurity, next: stageOperational, transit: true, text: text.encode()}, false, nil
}

// authenticated goes on to the operational stage, or asks for it.
func (m *loginMachine) authenticated(r loginStep) (loginStep, bool, error) {
	if !r.transit {
		m.state = loginWaitOperational
		return loginStep{current: stageSecurity, next: stageOperational, transit: true}, false, nil
	}
	if r.next != stageOperational {
		return loginStep{}, false, fmt.Errorf("target goes to login stage %d after authentication", r.next)
	}
	m.state = loginNegotiating
	return loginStep{current: stageOperational, next: stageFull, transit: true, text: m.offer().encode()}, false, nil
}

// offer lists our operational keys. InitialR2T=Yes forbids data that is neither
// immediate nor asked for.
func (m *loginMachine) offer() keyList {
	digest := func(on bool) string {
		switch {
		case on && m.cfg.InsistOnDigests:
			return "CRC32C"
		case on:
			return "CRC32C,None"
		}
		return "None,CRC32C"
	}
	if m.discovery {
		return keyList{
			{"HeaderDigest", digest(m.cfg.HeaderDigest)},
			{"DataDigest", digest(m.cfg.DataDigest)},
			{"ErrorRecoveryLevel", "0"},
			{"DefaultTime2Wait", "0"},
			{"DefaultTime2Retain", "0"},
			{"MaxRecvDataSegmentLength", strconv.Itoa(ourMaxRecv)},
		}
	}
	return keyList{
		{"HeaderDigest", digest(m.cfg.HeaderDigest)},
		{"DataDigest", digest(m.cfg.DataDigest)},
		{"ErrorRecoveryLevel", "0"},
		{"InitialR2T", "Yes"},
		{"ImmediateData", "Yes"},
		{"MaxBurstLength", strconv.Itoa(ourMaxBurst)},
		{"FirstBurstLength", strconv.Itoa(ourFirstBurst)},
		{"MaxOutstandingR2T", "1"},
		{"MaxConnections", "1"},
		{"DataPDUInOrder", "Yes"},
		{"DataSequenceInOrder", "Yes"},
		{"DefaultTime2Wait", "0"},
		{"DefaultTime2Retain", "0"},
		{"MaxRecvDataSegmentLength", strconv.Itoa(ourMaxRecv)},
	}
}

// negotiated takes the target's values. Keys that it asks about and that are
// not ours are answered with NotUnderstood.
func (m *loginMachine) negotiated(keys keyList, r loginStep) (loginStep, bool, error) {
	if err := m.p.apply(keys); err != nil {
		return loginStep{}, false, err
	}
	if r.transit {
		if r.next != stageFull {
			return loginStep{}, false, fmt.Errorf("target goes to login stage %d after negotiation", r.next)
		}
		if c := m.cfg; c.InsistOnDigests && (c.HeaderDigest && !m.p.headerDigest || c.DataDigest && !m.p.dataDigest) {
			return loginStep{}, false, errors.New("target doesn't do the CRC32C digests that were asked for; switch them on there, or don't ask")
		}
		m.state = loginDone
		return loginStep{}, true, nil
	}
	var reply keyList
	for _, kv := range keys {
		if !known(kv.key) {
			reply = append(reply, keyValue{kv.key, "NotUnderstood"})
		}
	}
	return loginStep{current: stageOperational, next: stageFull, transit: true, text: reply.encode()}, false, nil
}

// known tells keys that need no answer of ours: those that we offered, and
// declarations.
func known(key string) bool {
	switch key {
	case "TargetAlias", "TargetAddress", "TargetPortalGroupTag":
		return true
	}
	_, offered := (&loginMachine{}).offer().get(key)
	return offered
}

// apply takes over values that the target answered or declared.
func (p *params) apply(keys keyList) error {
	for _, d := range []struct {
		key string
		on  *bool
	}{{"HeaderDigest", &p.headerDigest}, {"DataDigest", &p.dataDigest}} {
		switch v, ok := keys.get(d.key); {
		case !ok:
		case v == "CRC32C":
			*d.on = true
		case v == "None", v == "Reject":
			*d.on = false
		default:
			return fmt.Errorf("target answers %s=%.40s; expected None or CRC32C", d.key, v)
		}
	}
	const maxLen = 1<<24 - 1 // RFC 7143, section 13: the largest value of each
	var err error
	if p.immediateData, err = keys.yes("ImmediateData", p.immediateData); err != nil {
		return err
	}
	if p.targetMaxRecv, err = keys.number("MaxRecvDataSegmentLength", 512, maxLen, p.targetMaxRecv); err != nil {
		return err
	}
	if p.maxBurst, err = keys.number("MaxBurstLength", 512, maxLen, p.maxBurst); err != nil {
		return err
	}
	if p.firstBurst, err = keys.number("FirstBurstLength", 512, maxLen, p.firstBurst); err != nil {
		return err
	}
	// The smaller one holds (sections 13.13 and 13.14), also for a target that
	// answers more than was offered.
	p.maxBurst = min(p.maxBurst, ourMaxBurst)
	p.firstBurst = min(p.firstBurst, ourFirstBurst, p.maxBurst)
	level, err := keys.number("ErrorRecoveryLevel", 0, 2, 0)
	if err == nil && level != 0 {
		err = fmt.Errorf("target insists on error recovery level %d", level)
	}
	return err
}
