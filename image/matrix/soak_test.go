package matrix

import (
	"strings"
	"testing"
)

func TestGrew(t *testing.T) {
	before := use{resident: 40 << 20, available: 300 << 20, daemonFiles: 20, openFiles: 500, goroutines: 30, vmResident: 400 << 20, vmFiles: 30}
	for want, change := range map[string]func(u *use){
		"":                             func(u *use) { u.daemonFiles += 3; u.available -= 1 << 20 },
		"the daemon's memory":          func(u *use) { u.resident += maxGrowth + 1 },
		"the VM process' files":        func(u *use) { u.vmFiles += maxFiles + 1 },
		"the host's open files":        func(u *use) { u.openFiles += maxFiles + 1 },
		"memory that the host lacks":   func(u *use) { u.available -= maxGrowth + 1 },
		"the daemon's goroutines":      func(u *use) { u.goroutines += maxFiles + 1 },
		"the VM process' memory":       func(u *use) { u.vmResident += maxGrowth + 1 },
		"the daemon's files: 200, and": func(u *use) { u.daemonFiles = 200 },
	} {
		now := before
		change(&now)
		err := now.grew(before)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
