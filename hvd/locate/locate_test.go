package locate

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// The simulated CPU: enough of one to have every trap that a locator can fall
// into.
type op uint8

const (
	opAdd  op = iota // reg += imm
	opJcc            // counted: jump if reg is no multiple of imm
	opJmp            // not counted; reg += 1, so that no circle repeats
	opLoad           // rcx = imm
	opRep            // repeated while rcx > 0: reg += 3
	opCLI
	opSTI // with a shadow
	opMovSS
	opExit
)

type instr struct {
	op     op
	reg    int
	imm    uint64
	target int
}

type simCPU struct {
	program []instr
	pc      int
	regs    [4]uint64
	rcx     uint64
	flag    bool
	shadow  bool
	count   uint64
	made    uint64 // instructions, for the test alone
}

// step makes one instruction; true is an exit.
func (c *simCPU) step() bool {
	i := c.program[c.pc]
	c.shadow = false
	c.made++
	next := c.pc + 1
	switch i.op {
	case opAdd:
		c.regs[i.reg] += i.imm
	case opJcc:
		c.count++
		if c.regs[i.reg]%i.imm != 0 {
			next = i.target
		}
		c.regs[i.reg]++
	case opJmp:
		c.regs[i.reg]++
		next = i.target
	case opLoad:
		c.rcx = i.imm
	case opRep:
		if c.rcx > 0 {
			c.rcx--
			c.regs[i.reg] += 3
			next = c.pc
		}
	case opCLI:
		c.flag = false
	case opSTI:
		c.shadow = !c.flag
		c.flag = true
	case opMovSS:
		c.shadow = true
	}
	if c.pc = next; next >= len(c.program) {
		c.pc = 0
	}
	return i.op == opExit
}

// simTarget is a Target whose overflow comes late by a random number of events.
type simTarget struct {
	simCPU
	rng      *rand.Rand
	skid     uint64
	overflow uint64
	bp       int
}

func (t *simTarget) Count() (uint64, error) { return t.count, nil }

func (t *simTarget) Regs() (Regs, error) {
	h := uint64(1)
	for _, v := range t.regs {
		h = h*0x9e3779b97f4a7c15 + v
	}
	return Regs{
		RIP: uint64(t.pc), RCX: t.rcx, Hash: h, IF: t.flag, Shadow: t.shadow,
		Repeated: t.program[t.pc].op == opRep,
	}, nil
}

func (t *simTarget) Overflow(n uint64) error { t.overflow = n; return nil }

func (t *simTarget) SetBreakpoint(rip uint64, on bool) error {
	t.bp = -1
	if on {
		t.bp = int(rip)
	}
	return nil
}

func (t *simTarget) Step() (Why, error) {
	if t.bp >= 0 {
		return 0, errors.New("a step with a breakpoint set")
	}
	if t.step() {
		return Exited, nil
	}
	return Stepped, nil
}

func (t *simTarget) Run() (Why, error) {
	end := t.overflow + t.rng.Uint64N(t.skid+1)
	for {
		if t.pc == t.bp {
			return Broke, nil
		}
		if t.count >= end {
			return Overflowed, nil
		}
		if t.step() {
			return Exited, nil
		}
	}
}

// program makes a random one that never stops. Without circles it makes a
// conditional branch each round.
func program(rng *rand.Rand, circles bool) []instr {
	p := make([]instr, 8+rng.IntN(40))
	for i := range p {
		p[i] = instr{
			op: op(rng.IntN(int(opExit))), reg: rng.IntN(4), imm: 1 + rng.Uint64N(9), target: rng.IntN(len(p)),
		}
		if p[i].op == opJmp && !circles {
			p[i].target = min(i+1+rng.IntN(len(p)-i), len(p)-1)
		}
		if p[i].op == opCLI && rng.IntN(2) == 0 {
			p[i].op = opSTI
		}
	}
	p[0] = instr{op: opSTI}
	p[len(p)-1] = instr{op: opJcc, imm: 3, target: rng.IntN(len(p))}
	return p
}

func newTarget(p []instr, seed, skid uint64) *simTarget {
	return &simTarget{simCPU: simCPU{program: p, flag: true}, rng: rand.New(rand.NewPCG(seed, skid)), skid: skid, bp: -1}
}

// TestSeek: wherever a primary stops, the secondary comes to the very same
// instruction, however late overflows are.
func TestSeek(t *testing.T) {
	for _, skid := range []uint64{0, 1, 7, 125, 10_000} {
		t.Run(fmt.Sprint("skid ", skid), func(t *testing.T) {
			rounds := 2000
			if skid > 1000 {
				rounds = 40
			}
			settled := 0
			for seed := range uint64(rounds) {
				rng := rand.New(rand.NewPCG(seed, 1))
				p := program(rng, true)
				primary := newTarget(p, seed, skid)
				for range rng.IntN(3 * (int(skid) + 1000)) {
					primary.step()
				}
				stopped := primary.made
				point, ok, _, err := Settle(primary, 1000)
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					continue // a program that never turns interrupts on again
				}
				settled++
				if at := p[primary.pc].op; !primary.flag || primary.shadow || at == opRep || primary.made < stopped {
					t.Fatalf("seed %d: settled at %d, flag %t, shadow %t", seed, primary.pc, primary.flag, primary.shadow)
				}
				secondary := newTarget(p, seed+1e6, skid)
				s := &Seeker{Want: point, Skid: skid}
				if err := Seek(secondary, s); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if secondary.made != primary.made || secondary.regs != primary.regs {
					t.Fatalf("seed %d: at instruction %d with %v, want %d with %v", seed,
						secondary.made, secondary.regs, primary.made, primary.regs)
				}
			}
			if settled < rounds/2 {
				t.Errorf("only %d of %d programs had a point", settled, rounds)
			}
		})
	}
}

// TestMissed: an overflow that comes later than the skid allows, a different
// execution, or an exit on the way is a miss, and never another point.
func TestMissed(t *testing.T) {
	missed := 0
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 2))
		p := program(rng, false)
		primary := newTarget(p, seed, 0)
		for range 500 + rng.IntN(1000) {
			primary.step()
		}
		point, ok, _, err := Settle(primary, 1000)
		if err != nil || !ok {
			continue
		}
		late := newTarget(p, seed, 300)
		switch err := Seek(late, &Seeker{Want: point, Skid: 10}); {
		case errors.Is(err, ErrMissed):
			missed++
		case err != nil:
			t.Fatal(err)
		case late.made != primary.made:
			t.Fatalf("seed %d: took instruction %d for %d", seed, late.made, primary.made)
		}
		other := newTarget(p, seed, 5)
		other.regs[0]++
		if err := Seek(other, &Seeker{Want: point, Skid: 5}); err == nil && other.regs != primary.regs {
			t.Fatalf("seed %d: found a point with other registers", seed)
		}
	}
	if missed < 100 {
		t.Errorf("%d misses: an overflow that is far too late should make more", missed)
	}
	exits := newTarget([]instr{{op: opJcc, imm: 2}, {op: opExit}}, 1, 0)
	if err := Seek(exits, &Seeker{Want: Point{Count: 50, RIP: 7}}); !errors.Is(err, ErrMissed) {
		t.Errorf("an exit on the way: %v", err)
	}
}

// TestSettleGivesUp: interrupts that stay off don't keep the primary for ever.
func TestSettleGivesUp(t *testing.T) {
	target := newTarget([]instr{{op: opCLI}, {op: opJmp}}, 1, 0)
	target.step()
	if _, ok, exited, err := Settle(target, 50); ok || exited || err != nil {
		t.Errorf("settled %t, exited %t, %v", ok, exited, err)
	}
	if target.made != 51 {
		t.Errorf("%d steps, want 50", target.made-1)
	}
	target = newTarget([]instr{{op: opCLI}, {op: opExit}}, 1, 0)
	target.step()
	if _, ok, exited, err := Settle(target, 50); ok || !exited || err != nil {
		t.Errorf("settled %t, exited %t, %v", ok, exited, err)
	}
}
