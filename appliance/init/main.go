// Command init is the first program of a host. It is gokrazy's init, with one thing before it: what makes this host
// differ from all others that run the same image is on /perm, and init makes it at the first boot.
//
//	the disk's table     extended to the disk's end              appliance/perm
//	/perm                made where nothing is, then grown       appliance/perm
//	/perm/gokr-pw.txt    password of gokrazy's page, user gokrazy; shown on the console when it is made
//	/perm/machine-id     32 random hex digits, for gokrazy's heartbeat
//	/perm/duet/host.key  the host's key                          hvd/hostkey
//	the host's name      "name" of host.json; without one duet- and six digits of the key's SHA-256
//
// A /perm that can't be used stays as it is. The host then starts with one in memory, whose identity is gone at the next
// boot, and says so: a host that can't be reached can't be repaired. It holds no host.json, so that it touches no volume.
//
// config.json names this package as InitPkg. All programs in /gokrazy and /user are started, as gokrazy's generated init
// does, but without flags and environment from PackageConfig: nothing here needs any. Imports appliance/perm,
// appliance/release, hvd/hostcfg and hvd/hostkey.
package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/gokrazy/gokrazy"
	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/appliance/release"
)

// permDir is where gokrazy mounts the fourth partition.
const permDir = "/perm"

func main() {
	log.SetFlags(log.LstdFlags | log.Lshortfile)
	name := prepare(say)
	if err := gokrazy.Boot("Duet " + release.Version); err != nil {
		log.Fatal(err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		say(fmt.Sprintf("the host's name can't be set: %v", err))
	}
	say(fmt.Sprintf("host %s, Duet %s", name, release.Version))
	services, err := programs("/gokrazy", "/user")
	if err != nil {
		log.Fatal(err)
	}
	if err := gokrazy.SuperviseServices(services); err != nil {
		log.Fatal(err)
	}
	select {}
}

// say prints a line where an operator sees it: on the console, which is the serial line, and on the screen.
func say(line string) {
	fmt.Println("duet: " + line)
	screen, err := os.OpenFile("/dev/tty1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return // a server without one
	}
	defer screen.Close()
	fmt.Fprintf(screen, "duet: %s\r\n", line)
}

// programs lists what to start, in the order that gokrazy has.
func programs(dirs ...string) ([]*gokrazy.Service, error) {
	var services []*gokrazy.Service
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if path == "/gokrazy/init" {
				continue
			}
			services = append(services, gokrazy.NewService(exec.Command(path)))
		}
	}
	return services, nil
}
