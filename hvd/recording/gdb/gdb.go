// Package gdb speaks GDB's remote protocol about an execution that can go
// backwards.
//
// # Place
//
// hvd/playback serves it on a socket, with a recording under execution as the
// Target; tests have a toy. Pure: bytes of the debugger go in, bytes for it come
// out. It imports nothing of ours.
//
// # Protocol
//
// Source: GDB's manual, appendix E ("GDB Remote Serial Protocol").
//
//	$data#cc    a packet; cc is the sum of data, hexadecimal; } escapes
//	+ -         acknowledgements, until QStartNoAckMode
//	03          an interrupt, while the target runs: the caller's business
//
//	? g p m qSupported qXfer:features qAttached qC H T vCont? q*ThreadInfo
//	                                   as usual; one thread, 1
//	s c S C vCont;s vCont;c            forwards
//	bs bc                              backwards
//	Z0 Z1 z0 z1                        breakpoints, all of one kind
//	qRcmd                              a line for Target.Monitor
//	G P M X                            refused: what was recorded can't be changed
//	D k                                the end
package gdb

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const (
	maxPacket = 16 << 10 // bytes between $ and #
	maxRead   = maxPacket/2 - 16
	maxBreaks = 1024
)

// Why says why a target stopped.
type Why uint8

// The reasons of a stop.
const (
	Stepped     Why = iota // an instruction is executed, or taken back
	AtBreak                // at a breakpoint
	AtBegin                // there is nothing before
	AtEnd                  // there is nothing behind
	Interrupted            // asked to
	Failed                 // the note says what is wrong
)

// Stop is how a run ended.
type Stop struct {
	Why  Why
	Note string // a line for whoever debugs, or empty
}

// Target is what is debugged. It stands still between two calls.
type Target interface {
	// Registers are all registers in the order of RegisterSizes, little endian.
	Registers() ([]byte, error)
	// Memory reads guest memory at a virtual address, as much as is mapped.
	Memory(addr uint64, b []byte) int
	// Step executes one instruction.
	Step() Stop
	// Continue executes up to one of the addresses.
	Continue(breaks []uint64) Stop
	// ReverseStep takes one instruction back.
	ReverseStep() Stop
	// ReverseContinue goes back to where one of the addresses was last met.
	ReverseContinue(breaks []uint64) Stop
	// Breakable says whether Continue stops at an address.
	Breakable(addr uint64) bool
	// Monitor answers a command line of the user's.
	Monitor(line string) string
}

// RegisterSizes are the sizes in bytes of GDB's registers of the architecture
// i386:x86-64: rax rbx rcx rdx rsi rdi rbp rsp r8-r15 rip, eflags cs ss ds es fs gs,
// st0-7, fctrl fstat ftag fiseg fioff foseg fooff fop, xmm0-15, mxcsr.
var RegisterSizes = func() (sizes []int) {
	for _, group := range []struct{ count, size int }{{17, 8}, {7, 4}, {8, 10}, {8, 4}, {16, 16}, {1, 4}} {
		sizes = append(sizes, slices.Repeat([]int{group.size}, group.count)...)
	}
	return sizes
}()

const features = `<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">` +
	`<target version="1.0"><architecture>i386:x86-64</architecture></target>`

// Server is the target's side of one connection.
type Server struct {
	t      Target
	in     []byte // of a packet that isn't complete
	out    []byte
	last   []byte // the last packet that was sent
	noAck  bool
	done   bool
	why    Stop
	breaks map[uint64]int // address -> how many times set
}

// New makes a server for a target.
func New(t Target) *Server { return &Server{t: t, breaks: map[uint64]int{}} }

// Done says that the debugger has gone.
func (s *Server) Done() bool { return s.done }

// Feed takes what the debugger sent and returns what it gets. The target runs
// meanwhile, if it was told to.
func (s *Server) Feed(b []byte) []byte {
	for _, c := range b {
		if s.done {
			break
		}
		s.byte(c)
	}
	out := s.out
	s.out = nil
	return out
}

func (s *Server) byte(c byte) {
	if len(s.in) == 0 {
		switch c {
		case '$':
			s.in = append(s.in, c)
		case '-':
			s.out = append(s.out, s.last...)
		}
		return
	}
	s.in = append(s.in, c)
	n := len(s.in)
	if n > maxPacket {
		s.in = nil
		s.nak()
		return
	}
	if n < 4 || s.in[n-3] != '#' {
		return
	}
	body := s.in[1 : n-3]
	want, err := strconv.ParseUint(string(s.in[n-2:]), 16, 8)
	s.in = nil
	if err != nil || byte(want) != checksum(body) {
		s.nak()
		return
	}
	if !s.noAck {
		s.out = append(s.out, '+')
	}
	s.packet(unescape(body))
}

func (s *Server) nak() {
	if !s.noAck {
		s.out = append(s.out, '-')
	}
}

func checksum(b []byte) (sum byte) {
	for _, c := range b {
		sum += c
	}
	return sum
}

func unescape(b []byte) string {
	var out strings.Builder
	for i := 0; i < len(b); i++ {
		if b[i] == '}' && i+1 < len(b) {
			i++
			out.WriteByte(b[i] ^ 0x20)
			continue
		}
		out.WriteByte(b[i])
	}
	return out.String()
}

// send sends a packet.
func (s *Server) send(data string) {
	var b []byte
	for i := range len(data) {
		switch c := data[i]; c {
		case '$', '#', '}', '*':
			b = append(b, '}', c^0x20)
		default:
			b = append(b, c)
		}
	}
	s.last = fmt.Appendf(nil, "$%s#%02x", b, checksum(b))
	s.out = append(s.out, s.last...)
}

// packet answers one packet.
func (s *Server) packet(p string) {
	if p == "" {
		s.send("")
		return
	}
	rest := p[1:]
	switch p[0] {
	case '?':
		s.stopped(s.why)
	case 'g', 'p':
		s.registers(p)
	case 'm':
		s.memory(rest)
	case 'G', 'P', 'M', 'X':
		s.send("E01")
	case 's', 'S':
		s.stopped(s.t.Step())
	case 'c', 'C':
		s.stopped(s.t.Continue(s.addresses()))
	case 'b':
		s.backwards(rest)
	case 'v':
		s.verbose(rest)
	case 'Z', 'z':
		s.breakpoint(p[0] == 'Z', rest)
	case 'H', 'T':
		s.send("OK")
	case 'D':
		s.send("OK")
		s.done = true
	case 'k':
		s.done = true
	case 'q', 'Q':
		s.query(p)
	default:
		s.send("")
	}
}

func (s *Server) addresses() []uint64 { return slices.Sorted(maps.Keys(s.breaks)) }

func (s *Server) backwards(p string) {
	switch p {
	case "s":
		s.stopped(s.t.ReverseStep())
	case "c":
		s.stopped(s.t.ReverseContinue(s.addresses()))
	default:
		s.send("")
	}
}

func (s *Server) verbose(p string) {
	rest, ok := strings.CutPrefix(p, "Cont")
	switch {
	case !ok:
		s.send("")
	case rest == "?":
		s.send("vCont;c;C;s;S")
	case strings.HasPrefix(rest, ";s"), strings.HasPrefix(rest, ";S"):
		s.stopped(s.t.Step())
	case strings.HasPrefix(rest, ";c"), strings.HasPrefix(rest, ";C"):
		s.stopped(s.t.Continue(s.addresses()))
	default:
		s.send("E01")
	}
}

// stopped tells why the target stands still.
func (s *Server) stopped(x Stop) {
	s.why = Stop{Why: x.Why}
	if x.Note != "" {
		s.send("O" + hex.EncodeToString([]byte(x.Note+"\n")))
	}
	switch x.Why {
	case AtBreak:
		s.send("T05swbreak:;thread:1;")
	case AtBegin:
		s.send("T05replaylog:begin;thread:1;")
	case AtEnd:
		s.send("T05replaylog:end;thread:1;")
	case Interrupted:
		s.send("T02thread:1;")
	case Failed:
		s.send("T06thread:1;")
	default:
		s.send("T05thread:1;")
	}
}

func (s *Server) registers(p string) {
	all, err := s.t.Registers()
	if err != nil {
		s.send("E02")
		return
	}
	if p[0] == 'g' {
		s.send(hex.EncodeToString(all))
		return
	}
	n, err := strconv.ParseUint(p[1:], 16, 16)
	if err != nil || n >= uint64(len(RegisterSizes)) {
		s.send("")
		return
	}
	at := 0
	for _, size := range RegisterSizes[:n] {
		at += size
	}
	if end := at + RegisterSizes[n]; end <= len(all) {
		s.send(hex.EncodeToString(all[at:end]))
		return
	}
	s.send("E02")
}

func (s *Server) memory(p string) {
	a, n, _ := strings.Cut(p, ",")
	addr, err1 := strconv.ParseUint(a, 16, 64)
	size, err2 := strconv.ParseUint(n, 16, 32)
	if err1 != nil || err2 != nil || size > maxRead {
		s.send("E01")
		return
	}
	b := make([]byte, size)
	got := s.t.Memory(addr, b)
	if got == 0 && size > 0 {
		s.send("E14")
		return
	}
	s.send(hex.EncodeToString(b[:got]))
}

func (s *Server) breakpoint(set bool, p string) {
	f := strings.Split(p, ",")
	if len(f) < 3 || f[0] != "0" && f[0] != "1" {
		s.send("")
		return
	}
	addr, err := strconv.ParseUint(f[1], 16, 64)
	switch {
	case err != nil || set && (len(s.breaks) >= maxBreaks || !s.t.Breakable(addr)):
		s.send("E01")
		return
	case set:
		s.breaks[addr]++
	case s.breaks[addr] > 1:
		s.breaks[addr]--
	default:
		delete(s.breaks, addr)
	}
	s.send("OK")
}

func (s *Server) query(p string) {
	name, args, _ := strings.Cut(p, ":")
	switch name {
	case "qSupported":
		s.send(fmt.Sprintf("PacketSize=%x;ReverseStep+;ReverseContinue+;swbreak+;hwbreak+;vContSupported+;"+
			"QStartNoAckMode+;qXfer:features:read+", maxPacket))
	case "QStartNoAckMode":
		s.send("OK")
		s.noAck = true
	case "qAttached":
		s.send("1")
	case "qC":
		s.send("QC1")
	case "qfThreadInfo":
		s.send("m1")
	case "qsThreadInfo":
		s.send("l")
	case "qXfer":
		s.transfer(args)
	default:
		if line, ok := strings.CutPrefix(p, "qRcmd,"); ok {
			b, err := hex.DecodeString(line)
			if err != nil {
				s.send("E01")
				return
			}
			text := s.t.Monitor(string(b))
			s.send(hex.EncodeToString([]byte(text[:min(len(text), maxRead)] + "\n")))
			return
		}
		s.send("")
	}
}

func (s *Server) transfer(args string) {
	at, ok := strings.CutPrefix(args, "features:read:target.xml:")
	o, n, _ := strings.Cut(at, ",")
	offset, err1 := strconv.ParseUint(o, 16, 32)
	size, err2 := strconv.ParseUint(n, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		s.send("E00")
		return
	}
	rest := features[min(offset, uint64(len(features))):]
	if uint64(len(rest)) <= size {
		s.send("l" + rest)
		return
	}
	s.send("m" + rest[:size])
}
