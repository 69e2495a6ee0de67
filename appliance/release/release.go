// Package release tells which release of Duet this is. A host that runs it accepts updates by these numbers.
//
// Used by appliance/init, appliance/bundle and image. Imports nothing of ours.
package release

const (
	// Version is the release's name, for people.
	Version = "0.1.0"
	// Number orders releases. Each one that is published has a greater one than those before.
	Number = 1
	// Floor is the lowest number that a host with this release still accepts: raise it when an older release must not
	// come back, as after a fix of a hole.
	Floor = 1
	// Machine is the kind of machine that this release is for.
	Machine = "amd64-uefi"
)
