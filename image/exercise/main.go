// Command exercise is process 1 of a small guest that keeps every part of a
// machine a little busy: memory, page cache, processes, the FPU, clocks, the
// console, and its disk if it has one. Tests that look for the smallest difference between two copies of a
// guest run it, because it boots in a moment and never idles for long.
//
// # Place
//
// image/boottest packs it as a guest's initramfs; hvd/vm's tests run that. It
// imports nothing of ours.
//
// Each round prints "round N SUM": SUM depends on all that the rounds before
// computed, so a machine that is wrong somewhere says so sooner or later.
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

const (
	heap     = 4 << 20 // bytes filled a round
	cached   = 1 << 20 // bytes written to a file a round
	rest     = 5 * time.Millisecond
	forkEach = 8 // rounds
)

func main() {
	if len(os.Args) > 1 {
		fmt.Println(work(os.Args[1]))
		return
	}
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			fail(err)
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			fail(err)
		}
	}
	if err := exerciseDisk(); err != nil {
		fail(err)
	}
	sum := "begin"
	for n := 1; ; n++ {
		sum = work(sum)
		if n%forkEach == 0 {
			out, err := exec.Command("/init", sum).Output()
			if err != nil {
				fail(err)
			}
			sum = string(out[:len(out)-1])
		}
		fmt.Println("round", n, sum)
		time.Sleep(rest)
	}
}

// work is one round: the next sum after a sum.
func work(sum string) string {
	h := sha256.New()
	h.Write([]byte(sum))
	b := make([]byte, heap)
	x := 1.0
	for i := 0; i < len(b); i += 4096 {
		x = math.Sqrt(x*float64(i+1)) + math.Sin(x)
		binary.LittleEndian.PutUint64(b[i:], math.Float64bits(x))
	}
	h.Write(b)
	name := "/tmp/" + sum[:4]
	if err := os.WriteFile(name, b[:cached], 0o600); err != nil {
		fail(err)
	}
	back, err := os.ReadFile(name)
	if err != nil {
		fail(err)
	}
	h.Write(back)
	if err := os.Remove(name); err != nil {
		fail(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// fail ends the guest, which a test sees.
func fail(err error) {
	fmt.Println("exercise:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
