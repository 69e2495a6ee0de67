// Package api is what a host tells and what it can be told: the types of its
// HTTP interface.
//
// # Place
//
// hvd/daemon serves it to the world over TLS, with a token; hvd/vmproc, the
// process of one VM, serves the part about its VM to the daemon on a Unix
// socket, without. The command line, the demo and tests ask by a Client. It
// imports hvd/api/console, for the name of its protocol.
//
// # Resources
//
// All bodies are JSON; an error is {"error": "one line"} with a status of 4xx
// (the caller's fault) or 5xx. The token travels as "Authorization: Bearer".
//
//	GET    /v1/host                       Host
//	POST   /v1/host/drain                 have all VMs leave, and keep them off; Host
//	POST   /v1/host/undrain               the end of that; Host
//	POST   /v1/host/pair                  {"code": "..."} -> pair with the host that shows
//	                                      that code; {} -> show a new code here; Host
//	POST   /v1/host/unpair                forget the partner; Host
//	GET    /v1/host/check                 []Finding
//	GET    /v1/vms                        []VM, in the order of their names
//	GET    /v1/vms/{name}                 VM
//	POST   /v1/vms                        a definition (volume.Definition) -> VM
//	DELETE /v1/vms/{name}                 a VM that is stopped
//	POST   /v1/vms/{name}/start           start a VM that is stopped
//	POST   /v1/vms/{name}/stop            switch it off, now
//	POST   /v1/vms/{name}/shutdown        press its power button
//	POST   /v1/vms/{name}/force-start     start it here although it was the peer's,
//	                                      which the caller knows to be off
//	POST   /v1/vms/{name}/switchover      exchange the roles of the hosts, with
//	                                      nothing lost; answers when that is done
//	POST   /v1/vms/{name}/unprotect       have it run without a secondary, also after a
//	                                      restart of both hosts; VM. Both hosts follow
//	                                      within seconds
//	POST   /v1/vms/{name}/protect         the end of that; VM
//	POST   /v1/vms/{name}/test-failover   drop this host's copy, which runs, so that
//	                                      the other one takes over
//	GET    /v1/vms/{name}/console         its last console output, text
//	                                      Upgrade: console; then the stream of
//	                                      hvd/api/console, to the host where it runs
//	GET    /v1/vms/{name}/recording?for=60s
//	                                      its state and its log from now on, as a
//	                                      stream (hvd/recording)
//	GET    /v1/vms/{name}/vsock/{port}    Upgrade: vsock; then a raw stream to that
//	                                      port of the guest
//	GET    /v1/events?since=TIME&vm=NAME  []Event, oldest first; since that time (RFC
//	                                      3339), and of that VM, if they are given
//	GET    /v1/volume                     Report: what the volume and its target are like
//	GET    /v1/disks                      []Disk, by VM, in the order of the guest's
//	POST   /v1/vms/{name}/disks/{disk}    DiskSize: add a disk to a VM that is stopped; Disk
//	DELETE /v1/vms/{name}/disks/{disk}    remove it
//	POST   /v1/vms/{name}/disks/{disk}/grow      DiskSize; Disk
//	POST   /v1/vms/{name}/disks/{disk}/copy      DiskName: copy it onto another one, which
//	                                      is made if it isn't there; Disk
//	PUT    /v1/vms/{name}/disks/{disk}/content   a raw image becomes its content, and zeros
//	                                      behind it; Disk
//	GET    /v1/vms/{name}/disks/{disk}/content   its content
//
// Disks change only while their VM is stopped, and it can't be started
// meanwhile. What takes long goes on after the answer: Disk.Doing says so.
//
// A VM process serves, on its socket, what is below /v1/vms/{name} as /v1/vm:
// GET /v1/vm, POST /v1/vm/start, GET /v1/vm/console, GET /v1/vm/events and so
// on. Its vsock and its console are sockets of their own beside it
// (hvd/daemon/vmsock).
package api

import "time"

// Port is where a host serves the interface, TLS over TCP.
const Port = 7443

// MaxRecording is the longest recording that can be asked for.
const MaxRecording = 24 * time.Hour

// Host is a host's own state.
type Host struct {
	Name    string `json:"name"`
	Version string `json:"version"`        // of the image
	KVM     string `json:"kvm"`            // "ok", or what is wrong in one line
	Volume  string `json:"volume"`         // the same
	Peer    string `json:"peer,omitempty"` // the peer's name
	// Session is the hosts' own session to the peer: "ok", or what is wrong in one line; empty without a peer.
	Session string `json:"session,omitempty"`
	Key     string `json:"key"`     // the host's public key: peer.key in the peer's host.json
	Locator string `json:"locator"` // how a guest is stopped at a position
	// LocatorWhy says why it is that one, one line.
	LocatorWhy string `json:"locator_why,omitempty"`
	Drained    bool   `json:"drained,omitempty"` // no VM is to be on it
	Trouble    string `json:"trouble,omitempty"` // what keeps VMs from being protected, one line

	Usage *Usage `json:"usage,omitempty"` // of the daemon
	// AvailableBytes is the memory that is left on the host, OpenFiles how many files all its programs hold open.
	AvailableBytes uint64 `json:"available_bytes,omitempty"`
	OpenFiles      uint64 `json:"open_files,omitempty"`

	// Code is the pairing code that the host shows, and CodeUntil when it is over; empty if it shows none.
	Code      string     `json:"code,omitempty"`
	CodeUntil *time.Time `json:"code_until,omitempty"`
	// Heard are the hosts that were heard on NICs that may be the direct one.
	Heard []Heard `json:"heard,omitempty"`
}

// Usage is what a program takes of its host.
type Usage struct {
	PID           int    `json:"pid"`
	ResidentBytes uint64 `json:"resident_bytes"`
	Files         int    `json:"files"` // file descriptors
	Goroutines    int    `json:"goroutines"`
}

// Heard is a host that was heard on a NIC. Until it is paired, what it says of itself isn't proven.
type Heard struct {
	Name  string `json:"name"`
	NIC   string `json:"nic"`
	Shows bool   `json:"shows,omitempty"` // a pairing code
}

// Grade is how good a finding is.
type Grade string

// The grades.
const (
	Fine    Grade = "ok"
	Missing Grade = "missing" // the host works, and not everything that a pair needs is there
	Broken  Grade = "broken"  // it keeps the host from working
)

// Finding is one line of a host's check of itself.
type Finding struct {
	What  string `json:"what"`
	Grade Grade  `json:"grade"`
	Line  string `json:"line"` // what there is, or what is wrong and what to do
}

// Disk is a virtual disk.
type Disk struct {
	VM        string  `json:"vm"`
	Name      string  `json:"name"`
	SizeBytes uint64  `json:"size_bytes"`
	State     string  `json:"state"`             // "ready", "new" (it isn't zeroed yet) or "partial" (an import or a copy is missing)
	Doing     string  `json:"doing,omitempty"`   // what this host does to it now: zeroing, importing ...
	Percent   float64 `json:"percent,omitempty"` // how far that is
	Error     string  `json:"error,omitempty"`   // why the last thing that this host did to it failed, one line
}

// DiskSize is the size of a disk that is to be.
type DiskSize struct {
	SizeBytes uint64 `json:"size_bytes"`
}

// DiskName names a disk.
type DiskName struct {
	VM   string `json:"vm"`
	Disk string `json:"disk"`
}

// Report is what a look at the volume found.
type Report struct {
	Rows []ReportRow `json:"rows"`
	// Verdict says in a line whether a pair can work with the volume.
	Verdict string `json:"verdict"`
	OK      bool   `json:"ok"`
}

// ReportRow is one property of the volume.
type ReportRow struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	// Trouble is what follows for the pair, empty if nothing does.
	Trouble string `json:"trouble,omitempty"`
}

// VM is one VM as this host sees it.
type VM struct {
	Name      string `json:"name"`
	Role      string `json:"role"`      // pair.Role of this host's copy; without a process, "waiting" for one or "failed"
	Live      bool   `json:"live"`      // the guest runs here
	Protected bool   `json:"protected"` // primary with a secondary in lockstep
	// Unprotected says that a user wants it to run without a secondary.
	Unprotected bool   `json:"unprotected,omitempty"`
	Epoch       uint64 `json:"epoch"`
	Error       string `json:"error,omitempty"` // why it doesn't run or isn't protected, one line
	Output      string `json:"output"`          // the level of the output rule
	// Accessed says, while there is a guest, what was done so that the accessed
	// bits of its page tables can't make copies diverge: a word (steady, untouched
	// or unknown) and what follows from it, one line.
	Accessed string `json:"accessed,omitempty"`

	Position uint64  `json:"position"` // counted exits
	ClockNS  uint64  `json:"clock_ns"` // guest time
	LagMS    float64 `json:"lag_ms"`   // of the secondary's execution
	LinkMS   float64 `json:"link_ms"`  // the direct link's round trip, without hvd at its ends; 0: not known
	EchoMS   float64 `json:"echo_ms"`  // the same from hvd to hvd, the median of the last; 0: not known
	LSN      uint64  `json:"lsn"`      // secondary: received; primary: written
	Verified uint64  `json:"verified"` // LSN that the secondary has verified

	// Locator is how the guest is stopped where it makes no exit, and why so.
	Locator    string `json:"locator,omitempty"`
	LocatorWhy string `json:"locator_why,omitempty"`

	Counters Counters  `json:"counters"`
	Seed     *Seed     `json:"seed,omitempty"`     // the last state transfer from here
	Failover *Failover `json:"failover,omitempty"` // the last time that this copy went live for its peer
	Usage    *Usage    `json:"usage,omitempty"`    // of the VM's process
}

// Counters count since this copy went live or became secondary.
type Counters struct {
	Exits       uint64 `json:"exits"`
	Ticks       uint64 `json:"ticks"`
	Inputs      uint64 `json:"inputs"`
	Resyncs     uint64 `json:"resyncs"`
	ResyncBytes uint64 `json:"resync_bytes"`
	Points      uint64 `json:"points"` // times that the guest was stopped at one
	LogBytes    uint64 `json:"log_bytes"`

	// How the inputs of a protected guest found their positions: at an exit that
	// the guest made, at a counted trap, at a point found by counted branches, or
	// by a resync. Only inputs that can
	// wait count, ticks and packets for instance.
	AtExit   uint64 `json:"at_exit"`
	AtTrap   uint64 `json:"at_trap"`
	AtPoint  uint64 `json:"at_point"`
	AtResync uint64 `json:"at_resync"`
	Traps    string `json:"traps"` // what is counted now, with commas between

	Throttled   uint64 `json:"throttled"`
	Divergences uint64 `json:"divergences"`
	DiskReads   uint64 `json:"disk_reads"`
	DiskWrites  uint64 `json:"disk_writes"`
	// Reads that the log has and the bytes that they take in it; of them, those that
	// only say which blocks were read, and how many of these a secondary had to ask
	// for.
	LoggedReads  uint64 `json:"logged_reads"`
	ReadLogBytes uint64 `json:"read_log_bytes"`
	ReadRefs     uint64 `json:"read_refs"`
	RefLogBytes  uint64 `json:"ref_log_bytes"`
	RefsAsked    uint64 `json:"refs_asked"`
	FramesIn     uint64 `json:"frames_in"`
	FramesOut    uint64 `json:"frames_out"`

	// How long effects waited for the output rule, of the last 1,024.
	DelayMedianMS float64 `json:"delay_median_ms"`
	DelayP99MS    float64 `json:"delay_p99_ms"`
}

// Seed is a state transfer.
type Seed struct {
	Pages   int     `json:"pages"`
	Known   int     `json:"known"` // pages that the other host had already
	Used    int     `json:"used"`  // pages of the guest that held anything but zeros
	Bytes   uint64  `json:"bytes"` // on the link
	Rounds  int     `json:"rounds"`
	TotalMS float64 `json:"total_ms"`
	PauseMS float64 `json:"pause_ms"` // the guest stood still
}

// Failover says how a copy went live, in ms since it last heard of its peer.
type Failover struct {
	At          time.Time `json:"at"`
	Cause       string    `json:"cause"`
	DetectionMS float64   `json:"detection_ms"` // suspicion
	ClaimMS     float64   `json:"claim_ms"`     // the arbiter block is won
	LiveMS      float64   `json:"live_ms"`      // the guest runs, its network is open
	Reissued    int       `json:"reissued"`     // disk requests
}

// The kinds of events: what an event is about. One that changes the copy's role has From and Role as well.
const (
	EventRole       = "role"       // a change of role that is about nothing else, such as a start or a halt
	EventSuspicion  = "suspicion"  // the other host's copy is suspected, or no longer
	EventArbiter    = "arbiter"    // how an operation on the arbiter block ended, and what it decides
	EventFence      = "fence"      // how a fence ended
	EventDivergence = "divergence" // executions differ
	EventSeed       = "seed"       // a state transfer begins, ends or fails
	EventVolume     = "volume"     // the volume answers, or doesn't
	EventDisk       = "disk"       // a disk was made, changed or removed, or that failed
	EventCommand    = "command"    // what a user told the copy or the host, or why that is refused
	EventProcess    = "process"    // a VM's process, or the host's daemon, starts or ends
	EventPartner    = "partner"    // another host is paired with, in session, or neither any more
)

// Event is something that happened.
type Event struct {
	At       time.Time `json:"at"`                 // by the clock of the host that tells it
	Host     string    `json:"host,omitempty"`     // that tells it
	VM       string    `json:"vm,omitempty"`       // empty: the host itself
	Kind     string    `json:"kind,omitempty"`     // Event...
	Epoch    uint64    `json:"epoch,omitempty"`    // of the arbiter block that the copy knows
	From     string    `json:"from,omitempty"`     // role before it, if it changes that
	Role     string    `json:"role,omitempty"`     // role after it
	Position uint64    `json:"position,omitempty"` // of the guest here, in counted exits; 0: there is none
	Cause    string    `json:"cause,omitempty"`    // why, one line; empty: What says no more than that
	What     string    `json:"what"`               // for people, one line

	Divergence *Divergence `json:"divergence,omitempty"`
}

// Divergence says how a secondary's execution differs from its primary's. The
// copy is repaired by a state transfer of what differs.
type Divergence struct {
	Kind     string `json:"kind"`     // what differs: exit, stop, memory, cpu, devices, pages ...
	Position uint64 `json:"position"` // where it was found, in counted exits
	Detail   string `json:"detail"`

	Exit  uint64 `json:"exit,omitempty"` // the first that differs; 0 if none does or it isn't known
	Here  string `json:"here,omitempty"` // how the primary made it
	There string `json:"there,omitempty"`
}
