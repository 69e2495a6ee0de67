// Package pair decides which of two hosts runs a VM: one pure state machine
// per VM and host, made so that the death of either host loses nothing and no
// two copies of the VM ever speak to the world.
//
// # Place
//
// The loop of one VM drives a Machine: it gives it inputs and carries out
// its outputs. hvd/sim does the same in a simulated world. ftlink/arbiter
// carries out the arbiter operations. It imports nothing of ours.
//
// # Roles
//
//	          own block, start,       won              fenced
//	          nobody has state
//	Standby -------------------> Starting --> Fencing -------> Alone
//	   |                                                         ^
//	   | SeedBegin            +-- the primary is heard again --+ | (boot, or go
//	   v                      v                                | |  live)
//	Receiving --Seeded--> Secondary --the primary is gone--> Consuming
//	                          |                                | Consumed
//	                          | diverged                       v
//	                          +--------> Diverged --gone--> Claiming --won--> Fencing
//
//	Alone --a standby is there--> Seeding --it holds all--> Gating
//	  ^                                |                      | it knows all that left
//	  +-- it is lost, or not wanted ---+----------------------+--> Pairing
//	  |                                                               | written
//	  +--won-- Resolving <--the secondary is lost,- Primary <---------+
//	                         or not wanted
//
//	Primary --switchover--> Pausing --all is executed there--> Yielding --won--> Secondary
//	   ^                       | given up                      (the former primary)
//	   +-----------------------+
//	   +--the block gives it the VM-- Secondary                (the former secondary)
//
//	any live role --stop, shutdown--> Stopping --won--> Standby
//	any role --crashed, or the block is lost--> Standby
//
// # Invariants
//
//	I1  Who runs alone owns the block: effects leave at once only after this
//	    copy won SOLO and while nobody can have taken it away.
//	I2  PAIR is written only once the secondary can explain everything that
//	    has left. Gate{GateAcked} comes first; Gated says how long the log was
//	    then; the swap waits until the secondary is that far.
//	I3  While the block may say PAIR, effects wait for acknowledgements: from
//	    before the swap to PAIR until after the swap back to SOLO.
//	I4  A secondary swaps only from PAIR with itself as secondary and the very
//	    seeding that it holds; never from SOLO.
//	I5  A secondary that asks for the block acknowledges nothing more (Seal),
//	    and has executed all that it acknowledged (Consumed).
//	I6  Nothing of the guest's reaches the disk or the network before the other
//	    host is fenced.
//	I7  A swap whose outcome is unknown is asked for again, unchanged, until it
//	    is known, and no other is begun. That the old block is still there
//	    proves nothing: the command may be on its way. Once any swap took
//	    place, every older command miscompares, because no block comes back.
//	I9  A switchover writes PAIR with the roles exchanged only when the guest
//	    stands still at the log's end, nothing of it is under way, the secondary
//	    has executed all of the log, and may write to the volume already.
//	I8  Suspicion changes no role by itself: a primary goes on (its effects
//	    wait), a secondary executes what it has; the block decides.
//
// # Why it is safe
//
// Effects that left a pair are in the log that the secondary acknowledged (I3),
// or were explained when PAIR was written (I2). A secondary that wins has
// executed all of it (I5) and its primary can't win any more, nor get anything
// acknowledged; what the primary lets go late was acknowledged, so it is known,
// and its writes are fenced (I6). A primary that wins goes on from its own
// state. A copy that has no state starts the VM from its disk, only when the
// block is its own, or says PAIR with it and no copy with state was heard for
// Config.Grace; then the fence comes first as well. A host that was replaced isn't
// in that block: it hears neither of the two that are, and would fence one only.
//
// When a switchover writes its block, both copies are in the same state (I9): the
// one that the block gives the VM leads a log that begins there, and the other one
// is the secondary of it, with no state transfer. Either may turn that PAIR into
// SOLO like any other. The one that leads registers before, not after: once the
// block is written, the other may win and fence it, and what is fenced must stay
// so. It takes no fence of its own, for there is nothing to be fenced. Should it
// sleep between its read of the block and what it does then, it may take over by a
// block that the other one has replaced. Nothing acknowledges what it does, so
// nothing of it leaves but its announcement, and the live one announces again.
//
// # The driver's part
//
//   - Tick at least twice a heartbeat. Give inputs one at a time, and carry out
//     the outputs of one before giving the next. While that takes long, the last
//     message may be sent again with a higher number, in bounded time.
//   - Answer each Arbiter once, in bounded time; a few may be under way at once.
//   - The log of a seeding lives on the stream that carried its state, and ends
//     with that stream: after LinkDown, EndSeed or Seal nothing of it is sent,
//     taken or acknowledged. An acknowledgement counts only if it came on the
//     stream of the present seeding.
//   - At a seeding's final stop begin a new log (and rebase the gate): every
//     later effect carries an LSN of it. The gate is still open then.
//   - GateAcked: set the gate, then give Gated with the log's length.
//   - The secondary gives Progress when it acknowledges, the primary when the
//     acknowledgement comes.
//   - Consume may come again after the primary was heard again. Consumed is only
//     given when nothing that was acknowledged is left to execute, nor anything else
//     of what was received that can be executed without the primary.
//   - Fence registers the own key first, and only then: a host that was fenced
//     must not register by itself, or its old writes may land.
//   - Halt ends the session with the volume. A halted guest's disk requests must
//     not take effect behind the next guest's back.
//   - After Pause, no effect is made any more, and Paused is only given when
//     nothing of the guest's can reach the disk or the network later.
//   - After TakeOver and Yield the log runs the other way on the same stream. It
//     may come before Yield does: the block decides, not the stream.
//   - A secondary that can't go on, the log's end included, reports Diverge; a
//     copy that is broken reports Crashed.
//
// # What moves each role
//
// Not listed: an input that doesn't fit the role, which changes nothing. The
// file testdata/matrix has the outputs, for each role and input.
//
//	Standby    SeedBegin: Receiving. Block SOLO(self): Starting. Block PAIR:
//	           Starting at once if the peer is heard to hold nothing, after
//	           Grace of silence if it isn't heard. Block FREE: Starting after
//	           Start. ForceStart: Starting, from any block, unless the peer is
//	           heard to hold state. After a crash, no start for Grace.
//	Starting   won: Fencing. Not won: Standby. Unknown: the swap again.
//	           A seeding is refused.
//	Receiving  Seeded: Secondary. Stream broken, primary silent or restarted,
//	           another seeding, fault: Halt, Standby.
//	Secondary  Primary silent: Consuming. Primary restarted or halted its copy,
//	           stream broken or direct link silent for long although the
//	           primary is heard (its turn comes first), primary without the
//	           volume while it answers here: Consuming, for good. So does one
//	           that was given the VM and doesn't take it. Primary went on alone:
//	           Halt, Standby. Diverged: Diverged. Block PAIR with this copy as
//	           owner and the seeding that it named as its successor: TakeOver,
//	           Reissue, GoLive, Announce; Primary.
//	Diverged   Primary went on alone: Halt, Standby. Primary gone: Claiming at
//	           level verified (nothing left that wasn't verified), else Halt,
//	           Standby, and so a start from the disk after Grace.
//	Consuming  Primary heard again, not for good: Secondary. Consumed:
//	           Claiming. Diverged: as in Diverged. Given the VM: as in Secondary.
//	Claiming   Reads the block. PAIR with this seeding, or given the VM: swaps to
//	           SOLO; anything else: Halt, Standby. Left only by an answer, or when the primary
//	           says that it won.
//	Fencing    FenceDone: boot, or reissue and go live; announce; Alone. Error:
//	           the fence again.
//	Alone      A standby with the volume and a stream: Seeding, unless the VM is
//	           to run unprotected. Peer says that
//	           it owns a later epoch, or a write was refused: the gate is
//	           closed until the block is read; then Halt, or as before.
//	Seeding    Peer holds all: Gating. Peer lost, fault, Unprotect: EndSeed, Alone.
//	Gating     Peer is as far as the gate: Pairing. Peer lost, Unprotect: as in Seeding,
//	           and the gate opens: the block never said PAIR.
//	Pairing    Swap done: Primary, whatever became of the peer meanwhile.
//	Primary    Secondary silent, restarted, halted, diverged, claiming, too
//	           slow, or its stream broken: Resolving; Unprotect too. Switchover: Pause,
//	           Pausing. TestFailover: Halt, Standby.
//	Pausing    Paused, secondary as far and ready: Yielding. Secondary lost as in
//	           Primary: Resume, Resolving. A volume lost, or not in
//	           PausePatience: Resume, Primary.
//	Yielding   Won: Yield, Secondary of the other host's seeding. Not won: Halt,
//	           Standby. Left only by an answer.
//	Resolving  Won: gate open, Alone. Not won: Halt, Standby.
//	Stopping   Won: Halt, Standby, block FREE. Not won: Halt, Standby; the
//	           other copy stops by itself if the guest did.
//
// A host that is drained takes no seeding and starts nothing by itself. Its live
// copies are seeded to the other host and given to it; its secondaries ask, by
// their messages, to be dropped, which costs nothing that the primary has.
//
// A VM that is to run unprotected is known as such to both hosts. Its live copy drops
// the secondary as if that were lost, and its effects wait until the block says SOLO:
// until then the secondary may win. Other roles only remember it, also over a
// switchover, and whoever is live acts on it. Protect ends that; a standby is seeded.
//
// A live copy halts whenever it learns of a block with a later epoch that it
// didn't write. The block is read each Config.VolumeCheck in every role.
package pair
