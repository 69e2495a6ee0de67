package machine

// PageTable returns the guest's CR3 at the last exit: where its page tables
// begin. The execution isn't changed by that.
func (m *Machine) PageTable() (uint64, error) { return m.cpu.PageTable() }
