// Package nexus names Duet's ends of the I_T nexuses with the shared volume: one for each host's daemon, and one for
// each VM on each host.
//
// # Place
//
// hvd/daemon logs in with a host's own port, and a VM's process with that of its VM's slot. The process that fences
// the other host's copy derives the victim's port from here, so the rule must be the same on both hosts. The program's
// volume commands log in with a name of their own. It imports hvd/hostcfg and hvd/iscsi.
//
// # The rule
//
// A port is an initiator name and an ISID (RFC 7143, section 4.3). The name is the host's. The ISID has the format
// "random" (section 11.12.5: the two upper bits of byte 0 are 10), with a fixed number in the place of the random one, so
// that a login after a crash reinstates the session instead of leaving another one behind.
//
//	byte 0     0x80: type random, "a" zero
//	1-2        "D" "T", in the place of the random number "b", "c"
//	3          zero ("b", "c" end here)
//	4-5        "d", the qualifier, big endian: 0 for the daemon, 1 + slot for a VM
package nexus

import (
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/iscsi"
)

// Daemon is the slot of a host's daemon.
const Daemon = -1

// Tool is what the name begins with that the volume commands use for a host's.
const Tool = "tool-"

// prefix is what every initiator name of Duet begins with.
const prefix = "iqn.2026-01.org.duet-ft:"

// Initiator is the iSCSI name of a host, by the host's name (one DNS label).
func Initiator(host string) string { return prefix + host }

// ISID is the initiator session identifier of the VM in a slot of the volume (0 to 63), or of the host's daemon.
func ISID(slot int) [6]byte {
	d := uint16(slot + 1)
	return [6]byte{0x80, 'D', 'T', 0, byte(d >> 8), byte(d)}
}

// Config is how to log in to a host's volume as host.json says, with the port of an initiator name and an ISID.
func Config(v hostcfg.Volume, initiator string, isid [6]byte) iscsi.Config {
	return iscsi.Config{
		Portal: v.Portal, Second: v.Portal2, Target: v.Target, LUN: uint64(v.LUN), Initiator: initiator, ISID: isid,
		User: v.User, Secret: v.Secret, TargetUser: v.TargetUser, TargetSecret: v.TargetSecret,
		HeaderDigest: v.Digests, DataDigest: v.Digests, InsistOnDigests: v.Digests,
	}
}
