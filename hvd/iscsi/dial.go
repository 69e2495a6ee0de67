package iscsi

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// stream is a logged-in TCP connection, before anything runs on it.
type stream struct {
	nc                         net.Conn
	br                         *bufio.Reader
	bw                         *bufio.Writer
	framing                    framing
	p                          params
	cmdSN, expStatSN, maxCmdSN uint32
}

const bufferSize = 128 << 10

// connect opens a connection to a portal and logs in, within cfg.Timeout,
// following up to three redirections.
func connect(ctx context.Context, cfg Config, portal string, discovery bool) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	for range 4 {
		st, next, err := connectTo(ctx, cfg, portal, discovery)
		if !errors.Is(err, errRedirect) {
			return st, err
		}
		portal = targetAddress(next)
	}
	return nil, errors.New("target moves us on and on")
}

// targetAddress turns a TargetAddress, "host[:port][,portal-group]" with IPv6
// addresses in brackets (RFC 7143, section 13.8), into host:port.
func targetAddress(s string) string {
	s, _, _ = strings.Cut(s, ",")
	if _, _, err := net.SplitHostPort(s); err == nil {
		return s
	}
	return net.JoinHostPort(strings.Trim(s, "[]"), "3260")
}

// dialLimit is how long opening a TCP connection may take: with a second portal,
// a part of the whole, so that a portal that swallows everything doesn't keep us
// from the other one.
func (cfg Config) dialLimit() time.Duration {
	if cfg.Second == "" {
		return cfg.Timeout
	}
	return cfg.Timeout / 4
}

func connectTo(ctx context.Context, cfg Config, portal string, discovery bool) (st *stream, redirect string, err error) {
	dialing, cancel := context.WithTimeout(ctx, cfg.dialLimit())
	nc, err := cfg.Dial(dialing, "tcp", portal)
	cancel()
	if err != nil {
		return nil, "", shortNetError(err)
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			nc.Close()
			if ctx.Err() != nil {
				err = fmt.Errorf("target didn't finish the login in %v", cfg.Timeout)
			}
		}
	}()
	if tc, ok := nc.(*net.TCPConn); ok {
		if err := tc.SetNoDelay(true); err != nil {
			return nil, "", err
		}
	}
	st = &stream{
		nc: nc, br: bufio.NewReaderSize(nc, bufferSize), bw: bufio.NewWriterSize(nc, bufferSize),
		framing: framing{maxData: ourMaxRecv}, cmdSN: 1, expStatSN: 0,
	}
	challenge, err := newChallenge()
	if err != nil {
		return nil, "", err
	}
	redirect, err = st.login(newLogin(cfg, discovery, challenge), cfg.ISID)
	if err != nil {
		return nil, redirect, err
	}
	return st, "", nil
}

func newChallenge() (c chapChallenge, err error) {
	var b [1 + len(c.bytes)]byte
	if _, err = rand.Read(b[:]); err != nil {
		return c, err
	}
	c.id = b[0]
	copy(c.bytes[:], b[1:])
	return c, nil
}

// login drives a loginMachine over the stream.
func (st *stream) login(m *loginMachine, isid [6]byte) (redirect string, err error) {
	req, done := m.first(), false
	for first := true; !done; first = false {
		h := loginHeader(req, isid, st.cmdSN, st.expStatSN)
		if err := st.framing.write(st.bw, &h, req.text); err != nil {
			return "", shortNetError(err)
		}
		if err := st.bw.Flush(); err != nil {
			return "", shortNetError(err)
		}
		var rh header
		reply, err := readLogin(st.framing, st.br, &rh)
		if err != nil {
			return "", err
		}
		if first || after(rh.statSN()+1, st.expStatSN) {
			st.expStatSN = rh.statSN() + 1
		}
		st.maxCmdSN = rh.maxCmdSN()
		if after(rh.expCmdSN(), st.cmdSN) {
			st.cmdSN = rh.expCmdSN()
		}
		if req, done, err = m.answer(reply); err != nil {
			return m.redirect, err
		}
	}
	st.p = m.p
	st.framing.headerDigest, st.framing.dataDigest = m.p.headerDigest, m.p.dataDigest
	if after(st.cmdSN, st.maxCmdSN+1) {
		return "", fmt.Errorf("target's command window is closed (CmdSN %d, MaxCmdSN %d)", st.cmdSN, st.maxCmdSN)
	}
	return "", nil
}

// loginHeader is a Login Request (RFC 7143, section 11.12) for a new session
// (TSIH 0); logins are immediate commands.
func loginHeader(s loginStep, isid [6]byte, cmdSN, expStatSN uint32) (h header) {
	h[0] = byte(opLoginRequest) | flagImmediate
	h[1] = s.current << 2
	if s.transit {
		h[1] |= flagTransit | s.next
	}
	copy(h[8:14], isid[:])
	h.put32(24, cmdSN)
	h.put32(28, expStatSN)
	return h
}

// readLogin reads a Login Response.
func readLogin(f framing, r *bufio.Reader, h *header) (loginStep, error) {
	err := f.readHeader(r, h)
	switch op := h.op(); {
	case op == opReject:
		return loginStep{}, fmt.Errorf("target rejects the login (reason 0x%02x)", h[2])
	case op != opLoginResponse && *h != header{}:
		return loginStep{}, fmt.Errorf("no iSCSI target there (answers 0x%02x to a login)", h[0])
	case err != nil:
		return loginStep{}, fmt.Errorf("login: %w", shortNetError(err))
	case h.dataLen() > maxText:
		return loginStep{}, errors.New("target's login text is too long")
	}
	text := make([]byte, h.dataLen())
	if err := f.readData(r, h, text); err != nil {
		return loginStep{}, fmt.Errorf("login: %w", shortNetError(err))
	}
	return loginStep{
		current: h[1] >> 2 & 3, next: h[1] & 3, transit: h.has(flagTransit), more: h.has(flagContinue),
		text: text, class: h[36], detail: h[37],
	}, nil
}

// shortNetError drops the addresses that net.OpError repeats: the portal is in
// the message already.
func shortNetError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("closed by the target (%w)", err)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		if op.Timeout() {
			return fmt.Errorf("no answer: %w", op.Err)
		}
		return op.Err
	}
	return err
}

// deadlineIn is when something started now has to be over.
func deadlineIn(d time.Duration) time.Time { return time.Now().Add(d) }
