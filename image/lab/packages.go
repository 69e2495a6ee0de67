package lab

import (
	"os/exec"
	"strings"
)

// Package is a Debian package that the lab, the tests or the demo need.
type Package struct {
	// Name is the package's name.
	Name string
	// Purpose says what it is for.
	Purpose string
}

// Packages lists what must be installed to build guests and run the lab.
var Packages = []Package{
	{"qemu-system-x86", "runs the hosts"},
	{"ovmf", "UEFI firmware of the hosts"},
	{"istgt", "the iSCSI target"},
	{"mmdebstrap", "builds the guest"},
	{"e2fsprogs", "makes and checks file systems"},
}

// Missing names the packages of the list that are not installed; all of them where there is no dpkg.
func Missing() []string {
	var missing []string
	for _, p := range Packages {
		out, err := exec.Command("dpkg-query", "-W", "-f", "${db:Status-Status}", p.Name).Output()
		if err != nil || strings.TrimSpace(string(out)) != "installed" {
			missing = append(missing, p.Name)
		}
	}
	return missing
}
