package kvm

// HostTSC reads the host's time-stamp counter: what Counters.Fresh is compared
// with.
func HostTSC() uint64
