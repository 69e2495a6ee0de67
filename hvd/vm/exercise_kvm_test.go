package vm

import (
	"bytes"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
)

// The small guest of some tests: our kernel with image/exercise as its initramfs.
const (
	exerciseMemory = 96 << 20
	exerciseKernel = "/guest.vmlinuz"
	exerciseInitrd = "/guest.initrd"

	// The first two are longer on a real host; a test has no minute for each flip.
	flipCycle  = 2 * time.Second
	flipDigest = 200 * time.Millisecond
)

func exerciseMachine(t testing.TB, sys *kvm.System, memory *mem.Memory, disks ...board.Disk) *machine.Machine {
	t.Helper()
	m, err := machine.New(sys, machine.Config{
		MemoryBytes: exerciseMemory, Memory: memory,
		Board: board.Config{Disks: disks, MAC: guestMAC, CID: 3, Wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		Traps: kvm.FlagCR3 | kvm.FlagPF, SweepCycle: flipCycle, DigestEvery: flipDigest,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// bootExercise makes a machine that stands at the small guest's first
// instruction.
func bootExercise(t testing.TB, sys *kvm.System, disks ...board.Disk) *machine.Machine {
	t.Helper()
	var img boot.Image
	var err error
	if img.Kernel, err = os.ReadFile(exerciseKernel); err != nil {
		t.Skip("needs a host with the small guest (image/boottest runs this test in one): ", err)
	}
	if img.Initrd, err = os.ReadFile(exerciseInitrd); err != nil {
		t.Fatal(err)
	}
	img.Root = "root=/dev/ram0"
	m := exerciseMachine(t, sys, nil, disks...)
	entry, err := boot.Load(m.Memory, &img, boot.Options{Seed: [32]byte{1}, Quiet: !*loud})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Boot(entry); err != nil {
		t.Fatal(err)
	}
	return m
}

// listener is a rim without disk and network: it counts the guest's rounds.
type listener struct {
	mu     sync.Mutex
	text   []byte
	rounds atomic.Uint64
}

func (l *listener) Effect(x board.Effect) {
	if x.Kind != board.Console {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, x.Data...)
	l.rounds.Add(uint64(bytes.Count(x.Data, []byte("\n"))))
	if n := len(l.text); n > 1<<16 {
		l.text = l.text[n-1<<15:]
	}
}

func (l *listener) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text[max(0, len(l.text)-2000):])
}
