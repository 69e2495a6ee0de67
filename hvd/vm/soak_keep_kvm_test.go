package vm

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/recording"
)

// soakKept is a disk that takes the recording of a run that wasn't replayed
// equally.
const soakKept = "/dev/vdb"

// save writes a recording for hvd replay: m is a machine in the state at which
// it begins.
func (s *soak) save(r *soakRecord, m *machine.Machine) error {
	f, err := os.OpenFile(soakKept, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	cpu, err := machine.HostCPU(s.sys)
	if err != nil {
		return err
	}
	made := guestConfig(s.t)
	made.MemoryBytes = soakMemory
	config, err := json.Marshal(made)
	if err != nil {
		return err
	}
	w, err := recording.NewWriter(f, recording.Head{
		VM: "soak", Host: "soak", CPU: cpu.Name, Leaves: cpu.Fingerprint, Started: time.Now(),
		Memory: m.Memory.Size(), Machine: config,
	})
	if err != nil {
		return err
	}
	snapshot, err := m.Snapshot()
	if err != nil {
		return err
	}
	state, err := json.Marshal(snapshot)
	if err != nil {
		return err
	}
	var used []int
	for p := range m.Memory.Pages() {
		if !m.Memory.IsZero(p) {
			used = append(used, p)
		}
	}
	page := func(p int) []byte { return m.Memory.Bytes()[p*mem.PageSize : (p+1)*mem.PageSize] }
	return errors.Join(w.Pages(used, page), w.State(r.base, state), w.Log(r.log.Bytes()),
		w.End(recording.End{Position: r.final.Position, Fingerprint: r.final.Fingerprint, Why: "the run's end"}))
}
