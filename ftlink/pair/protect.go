package pair

// notWanted is why a copy that could protect the VM is dropped, or not made.
const notWanted = "a user has the VM run unprotected"

// unprotect has the VM run without a secondary, or lets it have one again.
func (m *Machine) unprotect(on bool) {
	if m.unprotected == on {
		return
	}
	m.unprotected = on
	if on {
		m.event(AboutCommand, "", notWanted+": no copy protects it from the death of its host")
		return
	}
	m.event(AboutCommand, "", "a user has the VM protected again")
}

// unwanted says that a secondary, or one that is being made, is to be dropped. A
// volume that doesn't answer is waited for: without it effects would wait, too. So is
// the end of a switchover; whoever is live then drops the other one.
func (m *Machine) unwanted() bool { return m.unprotected && m.role != Pausing && !m.volumeLost() }
