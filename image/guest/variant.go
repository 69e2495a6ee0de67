package guest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Variant is a guest that differs from Build's by what is said here.
type Variant struct {
	Name      string            // of its files in the cache: NAME-base-HASH.tar, NAME-HASH.img
	MiB       int               // size of the disk
	Packages  []string          // beside the guest's own
	Backports []string          // installed behind those from the distribution's backports; a kernel that was there stays
	Files     map[string][]byte // further files by their absolute path, all of them executable
}

// mirror serves the distribution's backports where the machine's own apt names no mirror.
const mirror = "http://deb.debian.org/debian"

// withBackports adds the backports to sources, lines of sources.list(5), from the mirror that they name.
func (v Variant) withBackports(sources string) string {
	if len(v.Backports) == 0 {
		return sources
	}
	from := mirror
	for line := range strings.Lines(sources) {
		if f := strings.Fields(line); len(f) == 4 && f[2] == suite {
			from = f[1]
			break
		}
	}
	if sources == "" {
		sources = fmt.Sprintf("deb %s %s main\n", from, suite)
	}
	return sources + fmt.Sprintf("deb %s %s-backports main\n", from, suite)
}

// backportHooks are mmdebstrap's arguments that install the backports. The apt inside does it: with the one outside, dpkg
// would work on this machine's own root (mmdebstrap(1), hooks).
func (v Variant) backportHooks() []string {
	if len(v.Backports) == 0 {
		return nil
	}
	return []string{`--customize-hook=chroot "$1" apt-get --yes --no-install-recommends -t ` + suite + "-backports install " + strings.Join(v.Backports, " ")}
}

// hashPackages writes what else goes into the base.
func (v Variant) hashPackages(h io.Writer) {
	if len(v.Packages)+len(v.Backports) > 0 {
		fmt.Fprintf(h, "%q %q\n", v.Packages, v.Backports)
	}
}

// hashFiles writes what else goes into the image.
func (v Variant) hashFiles(h io.Writer) {
	for _, name := range slices.Sorted(maps.Keys(v.Files)) {
		fmt.Fprintf(h, "%s %d\n%s", name, len(v.Files[name]), v.Files[name])
	}
}

// addFiles puts the variant's files beside the recipe's overlay.
func (b *builder) addFiles() error {
	for name, content := range b.Files {
		to := filepath.Join(b.work, "recipe/overlay", name)
		err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.Chmod(filepath.Dir(to), 0o755), os.WriteFile(to, content, 0o755), os.Chmod(to, 0o755))
		if err != nil {
			return err
		}
	}
	return nil
}
