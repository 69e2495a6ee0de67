// Package load is the outside world of a Redis guest: clients that write without end, remember what was acknowledged,
// and tell at any time whether all of it is still there.
//
// # Place
//
// The demo and nested tests use it. It imports nothing of ours: how to connect is given by the caller. The pure parts
// are the ledger of one client (ledger.go), the times of a window (window.go) and the protocol (resp.go); client.go and
// load.go do the I/O.
//
// # What a client does
//
// Each client has one TCP connection for its whole life; it never connects again, so that one lost connection is one
// reset in the result. One request at a time, by turns
//
//	INCR duet:<n>:count               a key that only this client increments
//	SET  duet:<n>:<slot> <value>      a value that was never written before, to each of its slots in turn
//
// An INCR's reply must be the last acknowledged count plus one: less means that the server went back, more that an
// increment was executed twice. Check reads everything back over the same connections:
//
//	count    the last acknowledged one (one more, if the connection broke with an INCR under way)
//	slot     the last acknowledged value (or the one under way, likewise)
//
// # Shared keys
//
// If asked to, every third request reads or writes a key that all clients share (duet:shared:<n>). Each request and its
// answer is noted with its times, and porcupine looks for one order of them all in which every read returns what was
// written last: the guest must have been one machine with one memory (shared.go).
//
// # Protocol
//
// RESP, version 2, as Redis has spoken it since 1.2: requests are arrays of bulk strings, replies one of
//
//	+text CR LF       simple string
//	-text CR LF       error
//	:number CR LF     integer
//	$length CR LF bytes CR LF    bulk string; length -1: null
//
// Arrays aren't asked for and refused. Lines are at most 512 bytes, bulk strings at most 64 KiB.
package load
