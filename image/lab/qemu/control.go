package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// Stop freezes the machine's CPU, as a host that hangs; Cont lets it go on.
func (m *Machine) Stop(ctx context.Context) error {
	m.running(false)
	return m.qmp.execute(ctx, "stop", nil, nil)
}

// Cont undoes Stop.
func (m *Machine) Cont(ctx context.Context) error {
	err := m.qmp.execute(ctx, "cont", nil, nil)
	m.running(true)
	return err
}

// Freeze stops QEMU itself by SIGSTOP: unlike with Stop, the machine's clock goes on, and its kernel finds when it wakes up
// that time has passed. Thaw undoes it.
func (m *Machine) Freeze() error {
	m.running(false)
	return m.signal(syscall.SIGSTOP)
}

// Thaw undoes Freeze.
func (m *Machine) Thaw() error {
	err := m.signal(syscall.SIGCONT)
	m.running(true)
	return err
}

// throttlePeriod is what Throttle divides; a scheduler's time slice is no longer.
const throttlePeriod = 20 * time.Millisecond

// Throttle lets the machine run for a share of the time, between 0 and 1, in slices, until ctx ends or the machine does.
func (m *Machine) Throttle(ctx context.Context, share float64) error {
	running := time.Duration(float64(throttlePeriod) * share)
	defer func() { _ = m.signal(syscall.SIGCONT) }() // it fails only if the machine is gone
	for on := false; ; on = !on {
		pause, signal := running, syscall.SIGCONT
		if on {
			pause, signal = throttlePeriod-running, syscall.SIGSTOP
		}
		if err := m.signal(signal); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.done:
			return nil
		case <-time.After(pause):
		}
	}
}

func (m *Machine) signal(s syscall.Signal) error {
	if err := m.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("QEMU of %s: %w", m.cfg.Name, err)
	}
	return nil
}

// SysRq gives the machine's kernel a command of the magic SysRq key over its serial port: a break, then the key. What
// there is depends on the kernel (Linux, admin-guide/sysrq): c panics, f kills the process with the most memory.
func (m *Machine) SysRq(ctx context.Context, key byte) error {
	if err := m.qmp.execute(ctx, "chardev-send-break", map[string]any{"id": "console"}, nil); err != nil {
		return err
	}
	return m.Type(string(key))
}

// Reset is the machine's reset button.
func (m *Machine) Reset(ctx context.Context) error {
	return m.qmp.execute(ctx, "system_reset", nil, nil)
}

// PowerOff is a short press on the machine's power button.
func (m *Machine) PowerOff(ctx context.Context) error {
	return m.qmp.execute(ctx, "system_powerdown", nil, nil)
}

// Query runs any QMP command and decodes what it returns into out, if that is not nil.
func (m *Machine) Query(ctx context.Context, command string, args, out any) error {
	return m.qmp.execute(ctx, command, args, out)
}
