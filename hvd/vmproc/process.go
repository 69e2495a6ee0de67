// Package vmproc is the process of one VM on one host: a copy of the VM, which
// is standby, secondary or live as the pair protocol decides.
//
// # Place
//
// hvd/daemon starts one per VM definition (hvd vm NAME). It joins everything:
// ftlink's protocol, link and arbiter, the volume, the network, and the engine
// (hvd/vm) that drives the machine. Nobody imports it but hvd's main.
//
// # Threads
//
// One goroutine, the loop, owns the protocol machine: inputs come through one
// channel, and its outputs are carried out by that goroutine in their order.
// What takes long (arbiter operations, fences, state transfers, booting) runs
// on a goroutine of its own and answers by an input. What the loop has to wait
// for all the same doesn't silence the copy: heartbeats are the pulse's, which
// has a thread of its own.
//
//	link's handler --+                            +-> pulse: heartbeats
//	engine's end  ---+--> inputs --> pair.Step ---+-> arbiter, fence (volume)
//	ticker ----------+                            +-> guest: seed, gate, go live
//
// # One life
//
// A copy that was live and is halted ends the process: requests that it sent to
// the volume die with its session, and the next process starts from nothing.
// The daemon starts it.
package vmproc

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/vcpu"
	"github.com/duet-ft/duet/hvd/volume"
)

// Options say what to run.
type Options struct {
	Name       string // of the VM
	HostConfig string // path of host.json
	KeyFile    string // path of host.key
	RunDir     string // for this VM's sockets
	Locator    string // how the guest is stopped between two exits: see chooseLocator
}

// minProcs is the least number of Go processors: the guest's thread, the
// kicker, the protocol's loop and the link.
const minProcs = 4

// On a host that QEMU emulates on a shared core, the protocol is more patient. With
// four to eleven jobs on two cores, the thread that executes such a host waited for
// its turn for 0.25 to 0.5 s 34 times in five minutes, for 0.5 to 1 s 12 times, and
// once for 1.06 s; beside one job, once for more than 0.25 s.
const (
	emulatedSuspect  = 20 // missed heartbeats until a peer is suspected: 1 s
	emulatedPatience = 1200 * time.Millisecond
)

// restartMarker is a file in RunDir: the guest asked for a reset, so the next
// process starts it.
const restartMarker = "restart"

// Process is one copy of a VM.
type Process struct {
	opt  Options
	host *hostcfg.Config
	key  ed25519.PrivateKey
	def  volume.Definition
	own  traits
	by   locate.Locator // how this host finds points between two exits
	why  string         // why so, one line

	sys     *kvm.System
	session *iscsi.Session
	disks   []*volume.DiskIO
	arbiter *arbiter.Executor
	pair    *pair.Machine
	tie     atomic.Pointer[tie]
	// incarnation is this process' number in the protocol.
	incarnation uint64
	pulse       *pulse
	laggard     lockstep.Laggard // the loop's
	moving      moving
	inputs      chan pair.Input
	later       chan func(context.Context) // run by the loop
	begun       time.Time
	ending      bool               // the loop ends after this step
	booting     context.CancelFunc // stops a boot under way, or nil
	toSeed      *pair.Seed         // a state transfer that waits for the boot

	mu       sync.Mutex
	conn     *session.Conn
	guest    *guest
	incoming *incoming
	offered  *session.Conn  // carries a state transfer that the peer hasn't taken yet
	offer    *have          // what the peer says it has of it
	kept     *mem.Memory    // of a copy that was halted, for the next state transfer; or nil
	progress *pair.Progress // the newest that the loop hasn't seen
	events   []api.Event
	heard    time.Time // last heartbeat
	role     pair.Role
	epoch    uint64
	safe     bool // protected
	trouble  string
	failover api.Failover
	timing   bool // a failover is being timed
	failed   *api.Failover
	refused  refusal
	seeded   *api.Seed
	blind    bool   // the other host finds no points
	diverged uint64 // divergences that secondaries of this copy reported

	given atomic.Uint64 // reads whose data a secondary asked for
}

// A collection takes some five million instructions however little there is to
// collect, and by default comes with each 4 MB: for a busy guest, hundreds of times
// a minute. So the heap may grow further, unless it is large (log that waits for a
// secondary's CPU).
const (
	gcPercent = 400
	gcLimit   = 512 << 20
)

// Main runs the process until ctx ends or the copy's life does.
func Main(ctx context.Context, opt Options) error {
	// The thread that runs the guest holds one of Go's processors while it is in
	// the kernel, until the runtime's monitor takes it away, up to 10 ms later.
	// On a small host there would be none left to answer the peer with.
	runtime.GOMAXPROCS(max(minProcs, runtime.NumCPU()+1))
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(gcLimit)
	p := &Process{opt: opt, inputs: make(chan pair.Input, 1024), later: make(chan func(context.Context), 16), begun: time.Now()}
	p.laggard.Limit = maxStall
	if vcpu.UnderTCG() {
		p.laggard.Limit = maxStallEmulated
	}
	defer p.close()
	if err := p.open(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	p.tie.Load().run(ctx)
	defer func() {
		cancel()
		<-p.tie.Load().done
	}()
	go p.pulse.run(ctx)
	api, err := p.serve(ctx)
	if err != nil {
		return err
	}
	defer api.Close()
	err = p.loop(ctx)
	if p.ending {
		p.session.Close() // and with it what the halted guest asked for
		ctx, cancel := context.WithTimeout(ctx, tapeEnd)
		defer cancel()
		_ = api.Shutdown(ctx) // recordings come to their end
	}
	return err
}

// open reads the configuration and connects to the volume.
func (p *Process) open(ctx context.Context) error {
	var err error
	if p.host, err = hostcfg.Load(p.opt.HostConfig); err != nil {
		return err
	}
	if p.key, err = hostkey.Load(p.opt.KeyFile); err != nil {
		return fmt.Errorf("this host has no key: %w", err)
	}
	if p.host.Volume == nil {
		return errors.New("no volume: host.json names none")
	}
	if p.sys, err = kvm.Open(); err != nil {
		return err
	}
	if p.own, err = hostTraits(p.sys); err != nil {
		return err
	}
	if p.by, p.why, err = chooseLocator(p.sys, p.opt.Locator); err != nil {
		return err
	}
	if err := p.openVolume(ctx); err != nil {
		return err
	}
	return p.openPair()
}

func (p *Process) close() {
	if p.guest != nil {
		p.guest.destroy()
	}
	p.endTrail(nil)
	p.takeKept(0)
	if p.session != nil {
		p.session.Close()
	}
	if p.sys != nil {
		p.sys.Close()
	}
}

// openVolume logs in with a session that only this VM uses, so that fencing it
// touches no other, and lets it write: this process has sent nothing yet, so
// nothing old can land. A fenced copy never comes back here; its process ends.
func (p *Process) openVolume(ctx context.Context) error {
	cfg := nexus.Config(*p.host.Volume, nexus.Initiator(p.host.Name), lookISID(p.opt.Name))
	cfg.Notify = p.say
	// The slot, which the session's identity has, is in the definition.
	look, err := iscsi.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	vol, err := volume.Open(ctx, look)
	if err == nil {
		p.def, err = vol.Definition(ctx, p.opt.Name)
	}
	if err := errors.Join(err, look.Close()); err != nil {
		return err
	}
	cfg.ISID = nexus.ISID(p.def.Slot)
	if p.session, err = iscsi.Dial(ctx, cfg); err != nil {
		return err
	}
	if err := p.session.Join(ctx); err != nil {
		return err
	}
	if vol, err = volume.Open(ctx, p.session); err != nil {
		return err
	}
	for _, d := range p.def.Disks {
		disk, err := vol.OpenDisk(ctx, p.def.Name, d.Name)
		if err != nil {
			return err
		}
		p.disks = append(p.disks, disk)
	}
	_, size := p.session.Capacity()
	p.arbiter = &arbiter.Executor{Blocks: lasting{p.session}, LBA: vol.ArbiterLBA(p.def.Slot), Size: size}
	return nil
}

// lookISID is for the session that only looks for the VM's definition. It lies
// outside of the slots, and those of two VMs rarely meet; if they do, one of the
// processes is thrown out, ends, and is started again.
func lookISID(name string) [6]byte {
	h := fnv.New32a()
	h.Write([]byte(name))
	return nexus.ISID(256 + int(h.Sum32()%60000))
}

// hostID derives a host's number in the protocol from its key. It is odd: even
// numbers are those of whoever holds a stopped VM (hvd/daemon/define).
func hostID(key ed25519.PublicKey) pair.HostID {
	h := sha256.Sum256(key)
	return pair.HostID(binary.BigEndian.Uint64(h[:]) | 1)
}

func (p *Process) openPair() error {
	uuid, err := parseUUID(p.def.UUID)
	if err != nil {
		return err
	}
	p.arbiter.VM = uuid
	self := p.key.Public().(ed25519.PublicKey)
	level := pair.LevelVerified
	if p.def.Output == volume.OutputReceived {
		level = pair.LevelReceived
	}
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return err
	}
	p.incarnation = binary.LittleEndian.Uint64(seed[:]) | 1
	first, err := p.newTie(p.host)
	if err != nil {
		return err
	}
	p.tie.Store(first)
	cfg := pair.Config{Self: hostID(self), Peer: hostID(first.with.Key), VM: uuid, Level: level, Heartbeat: heartbeat}
	if vcpu.UnderTCG() {
		cfg.SuspectAfter, cfg.LinkPatience = emulatedSuspect, emulatedPatience
	}
	p.pair, err = pair.New(cfg, p.incarnation)
	if err != nil {
		return err
	}
	p.role = p.pair.Role()
	beat := func(b []byte) error { return p.tie.Load().link.SendHeartbeat(b) }
	p.pulse = &pulse{send: beat, say: p.say, begun: p.begun}
	return nil
}

func parseUUID(s string) (u pair.UUID, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) {
		return u, fmt.Errorf("the VM's UUID %q isn't one", s)
	}
	return pair.UUID(b), nil
}

// tick is how often the protocol is told the time: well above twice a
// heartbeat.
const tick = 12 * time.Millisecond

// loop steps the protocol until ctx or this copy's life ends.
func (p *Process) loop(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	if err := os.Remove(filepath.Join(p.opt.RunDir, restartMarker)); err == nil {
		p.inputs <- pair.Command{Verb: pair.Start}
	}
	p.pulse.turn(time.Now())
	p.step(ctx, pair.Tick{Now: time.Since(p.begun)})
	// Now that the daemon can tell this process, the file says no less than it would.
	if _, err := os.Stat(hostcfg.DrainedPath(p.opt.HostConfig)); err == nil {
		p.step(ctx, pair.Command{Verb: pair.Drain})
	}
	if p.def.Unprotected {
		p.step(ctx, pair.Command{Verb: pair.Unprotect})
	}
	for !p.ending {
		p.pulse.turn(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			p.step(ctx, pair.Tick{Now: time.Since(p.begun)})
			if fault, ok := p.lagging(); ok {
				p.step(ctx, fault)
			}
			p.mu.Lock()
			progress := p.progress
			p.progress = nil
			p.mu.Unlock()
			if progress != nil {
				p.step(ctx, *progress)
			}
		case in := <-p.inputs:
			p.step(ctx, in)
		case f := <-p.later:
			f(ctx)
		}
	}
	return nil
}

func (p *Process) step(ctx context.Context, in pair.Input) {
	before := p.pair.Role()
	out := p.pair.Step(in)
	after := p.pair.Role()
	p.mu.Lock()
	p.role, p.epoch, p.safe = after, p.pair.Block().Epoch, p.pair.Protected()
	if after == pair.Gating {
		p.offered = nil
	}
	p.mu.Unlock()
	if before != after {
		p.time(before, after, suspicion(out))
	}
	for _, o := range out {
		p.do(ctx, o)
	}
	p.settle(after, out)
}

// post queues an input from another goroutine.
func (p *Process) post(in pair.Input) { p.inputs <- in }

// report notes how far the secondary is; only the newest counts.
func (p *Process) report(received, verified uint64) {
	p.mu.Lock()
	p.progress = &pair.Progress{Received: received, Verified: verified}
	p.mu.Unlock()
}

// say prints a line for the daemon to pass on.
func (p *Process) say(line string) { fmt.Fprintln(os.Stderr, line) }
