// Package virtio is the transport of our virtio devices: split virtqueues and
// the modern PCI function that carries them (VIRTIO 1.2 sections 2.7 and 4.1).
//
// # Place
//
// The sub-packages blk, net and vsock are one device each and sit on a
// Transport; hvd/board attaches the transports to the PCI bus. Of ours it
// imports hvd/mem. It is pure: the guest's accesses and the device's
// inputs are calls, interrupts are callbacks, memory changes only inside calls.
//
// # A function's two BARs
//
//	BAR0, memory, 16 KiB               BAR1, I/O, 64 bytes
//	0000h  common configuration        00h  notify, 2 bytes a queue
//	1000h  ISR status                  20h  ISR status
//	1800h  MSI-X table
//	1c00h  MSI-X pending bits
//	2000h  device configuration
//	3000h  notify, 2 bytes a queue
//
// The capabilities in I/O come first, and drivers take the first that they can
// use: an exit for a port is cheaper than one for memory.
//
// # Notifications
//
// Queues that a guest notifies only to halt right after are looked at instead, at
// its exits; see Quiet.
//
// # Status
//
//	0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK (queues work)
//	                                                |  the driver breaks a rule
//	                                                v
//	0 <- the driver writes 0 ---------------- DEVICE_NEEDS_RESET (queues rest)
//
// A guest can break every rule; it hurts its own device only. All addresses are
// checked by hvd/mem, chains and their bytes are limited, nothing panics.
package virtio
