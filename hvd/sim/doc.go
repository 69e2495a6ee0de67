// Package sim is a seeded world of two hosts: the real recorder, replayer,
// output gate, role protocol and arbiter, around simulated guests, links,
// clocks and a volume, under random faults. One seed is one history, so a
// seed is a bug report.
//
// # Place
//
// Tests only: Run(seed, Options) plays one history and returns what broke, and
// Shrink finds fewer faults that are enough for it. It imports
// hvd/{event,lockstep,diskref}, ftlink/pair and ftlink/arbiter.
//
// # The world
//
//	clients --- network --- host a  == direct link, management network ==  host b --- network
//	                          |                                              |
//	                          +----------------- volume ---------------------+
//
// Each host runs at most one process for the VM. A process is a role machine
// (pair.Machine), maybe a guest, and what carries the machine's outputs out.
// Events happen one after the other at simulated times; nothing waits.
//
// Faults come for a while: processes and hosts die and restart, freeze and
// thaw; paths lose, delay, reorder, break in one direction or both; the volume stalls,
// fails reads and writes, some of which it tears, loses replies, or can't be reached by
// one or both; executions diverge. A user has the VM change hosts or run unprotected
// meanwhile. Then all is repaired, and the pair has to be protected again.
//
// A disk error is an input, with a position in the log, so both copies see it there:
// the guest makes the request again. A write that was torn changes one of the two
// copies that the guest keeps of a record, and a guest that boots takes the newer one.
//
// Each fault and each command is a Step. What it does is drawn from a source of its
// own, and when it comes from one that no other draws from. So a step can be left
// out, and the others stay what they were.
//
// # What is checked, at each event that could break it
//
//	at most one live copy's effects   checkGates: at most one gate lets everything out. checkLeaves: what
//	reach anyone                      leaves is the live copy's, or known to the secondary that replaced it
//	each released effect is explained checkGoLive: whatever has left is part of the history of the copy that
//	by the survivor's log             goes live. checkLeaves: what a former primary still lets go, too
//	acknowledged writes are never     checkAcked: a reply that a client got is on the disk that a guest boots
//	lost                              from, and in the state of each copy that goes live. checkClients: there
//	                                  is an order of all that clients did which explains what they were told
//	                                  (porcupine)
//	with the volume in reach of a     watch: a current copy goes on within takeoverBound. checkEnd: in the
//	current copy, the VM runs again   repaired world the VM runs protected and serves all clients
//	a fenced host's writes never land volume.write: no fence came since the write was issued. checkLanding:
//	                                  it is the live guest's, and takes nothing back
//	epochs only grow                  checkBlock: each change of the block adds one. checkMachine: no role
//	                                  machine goes back
//	nothing half seeded, or older     checkGoLive: what goes live was whole, of the present boot, explains all
//	than the last effect, goes live   that left, and has read what its primary read (otherBytes: while they
//	                                  are a pair)
//	no effect of a divergent          checkVerified: what leaves by an acknowledgement at level verified, the
//	execution leaves                  secondary has made, too
//	what a user wants                 note: no host that knows that a user wants no secondary makes one.
//	                                  checkUnprotected: one that is there is dropped
//
// TestMutations breaks the rules that these invariants rest on, one at a time, and wants
// each found. Options has histories that measure instead: failovers, the delay of effects,
// a slow secondary. TestNoFalseFailovers plays heartbeats only, for hours.
package sim
