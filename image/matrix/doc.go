// Package matrix harms a real pair in every way that its table knows, and checks for each what a user was promised to see.
//
// # Place
//
// The tests in image/boottest run it on a pair of image/pairlab: a few cells in TestPair, all of them in TestMatrix (make
// matrix), and many failovers of one guest in TestSoakPair (make soak-pair). It imports image/{load,pairlab},
// image/target/proxy, image/lab and image/lab/{ether,transcript}, hvd/api and appliance/agent/wire.
//
// # What a cell is
//
//	when x what breaks, on whom (one thing or two at once) -> who serves, how long clients wait, what they see
//
// cells.go is the table, and README.md beside it is made from it: a test compares the two. fault.go has what can break.
//
// # How a cell is run
//
//	protected --> (seeding, switching over) --> apply --> outcome --> heal --> protected again --> checks
//
// One boot of the pair serves all cells, one after another, with one guest: it must have the same boot_id throughout,
// but for the cells that say otherwise. The clients are the same, too, each with one connection for its life.
//
// # What is checked
//
//   - Who runs the guest while the fault lasts, and afterwards; with what is calm, that the block's epoch is the same.
//   - Who takes over is live within five heartbeats of its suspicion.
//   - Every client gets an answer over its old connection, within the cell's time.
//   - What was acknowledged is there (image/load), and porcupine finds an order of all reads and writes of shared keys.
//   - Of a host that lost the guest, no write reaches the volume any more: the proxy before it counts them.
//   - Neither host tells of a divergence.
//   - At the end, the guest's file system is checked (pairlab.Fsck).
//
// A cell is run again if a host says that it stood still by itself, or if its takeover was late: the computer may be busy. Nothing
// else is excused by that: not a lost write, a restart, a divergence, or a late write.
//
// Times are those of emulated hosts, which wait a second until they suspect each other; real ones wait 150 ms.
package matrix
