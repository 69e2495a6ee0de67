package pairlab

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/duet-ft/duet/appliance/agent/wire"
	"github.com/duet-ft/duet/hvd/api"
)

const (
	// pollEvery is the pause between two looks at a condition, tryTimeout how long one look may take.
	pollEvery  = 300 * time.Millisecond
	tryTimeout = 5 * time.Second
	// guestTimeout is how long the guest may take to boot and serve, protectTimeout how long a seeding may take,
	// liveTimeout a takeover, shutdownTimeout the guest's own end.
	guestTimeout    = 5 * time.Minute
	protectTimeout  = 3 * time.Minute
	liveTimeout     = time.Minute
	shutdownTimeout = 2 * time.Minute
	// tailLines is how much of the hosts' logs an error shows.
	tailLines = 15
)

// wait looks at a condition until it holds. detail is what to say when it never does.
func (p *Pair) wait(ctx context.Context, timeout time.Duration, what string,
	look func(ctx context.Context) (ok bool, detail string),
) error {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		try, done := context.WithTimeout(ctx, tryTimeout)
		ok, detail := look(try)
		done()
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %s\n%s", time.Since(begin).Round(time.Second), what, detail, p.Tails())
		}
	}
}

// Tails are the last lines of both hosts' programs, each with the host's name.
func (p *Pair) Tails() string {
	var b strings.Builder
	for _, name := range Names {
		h := p.hosts[name]
		if h == nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(h.Log().Tail()), "\n")
		for _, l := range lines[max(0, len(lines)-tailLines):] {
			fmt.Fprintf(&b, "    %s: %s\n", name, l)
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

// VM is the guest as one host sees it.
func (p *Pair) VM(ctx context.Context, name string) (api.VM, error) {
	return p.API(name).VM(ctx, Guest)
}

// running tells whether a host is on.
func (p *Pair) running(name string) bool {
	m := p.hosts[name].Machine()
	if m == nil {
		return false
	}
	select {
	case <-m.Done():
		return false
	default:
		return true
	}
}

// on counts the hosts that are on.
func (p *Pair) on() (n int) {
	for _, name := range Names {
		if p.running(name) {
			n++
		}
	}
	return n
}

// find looks for a host on which the guest is as wanted; detail says how it is on both.
func (p *Pair) find(ctx context.Context, wanted func(api.VM) bool) (found, detail string) {
	var details []string
	for _, name := range Names {
		if !p.running(name) {
			continue
		}
		vm, err := p.VM(ctx, name)
		if err == nil && found == "" && wanted(vm) {
			found = name
		}
		details = append(details, name+": "+describe(vm, err))
	}
	return found, strings.Join(details, "; ")
}

func describe(vm api.VM, err error) string {
	if err != nil {
		return err.Error()
	}
	s := fmt.Sprintf("%s, epoch %d", vm.Role, vm.Epoch)
	if vm.Error != "" {
		s += " (" + vm.Error + ")"
	}
	return s
}

// WaitLive waits until the guest is live on a host, and returns its name.
func (p *Pair) WaitLive(ctx context.Context) (name string, err error) {
	err = p.wait(ctx, liveTimeout, "the guest to be live on a host", func(ctx context.Context) (bool, string) {
		var detail string
		name, detail = p.find(ctx, func(vm api.VM) bool { return vm.Live })
		return name != "", detail
	})
	return name, err
}

// WaitProtected waits until one host is the primary and the other its secondary in lockstep, and returns the primary's
// name.
func (p *Pair) WaitProtected(ctx context.Context) (primary string, err error) {
	err = p.wait(ctx, protectTimeout, "the guest to be protected", func(ctx context.Context) (bool, string) {
		var detail string
		primary, detail = p.find(ctx, func(vm api.VM) bool { return vm.Live && vm.Protected })
		return primary != "", detail
	})
	return primary, err
}

// StartGuest starts the VM on a host, unless it runs, and waits until its Redis answers.
func (p *Pair) StartGuest(ctx context.Context, name string) error {
	err := p.wait(ctx, liveTimeout, "the VM to start", func(ctx context.Context) (bool, string) {
		found, detail := p.find(ctx, func(vm api.VM) bool { return vm.Live })
		if found != "" {
			return true, ""
		}
		// Again and again: the VM's process may not be there yet. Where it starts already, this does nothing.
		if err := p.API(name).Start(ctx, Guest); err != nil {
			detail = err.Error()
		}
		return false, detail
	})
	if err != nil {
		return err
	}
	return p.wait(ctx, guestTimeout, "the guest's Redis to answer", func(ctx context.Context) (bool, string) {
		if err := p.ping(ctx); err != nil {
			_, detail := p.find(ctx, func(api.VM) bool { return false })
			return false, err.Error() + "; " + detail
		}
		return true, ""
	})
}

// Dial connects to the guest's Redis over the management network.
func (p *Pair) Dial(ctx context.Context) (net.Conn, error) {
	return p.Lab.Net.Dial(ctx, net.JoinHostPort(GuestIP(), fmt.Sprint(RedisPort)))
}

// ping asks Redis whether it serves.
func (p *Pair) ping(ctx context.Context) error {
	conn, err := p.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	answer := make([]byte, len("+PONG\r\n"))
	if _, err := conn.Read(answer); err != nil {
		return err
	}
	if string(answer) != "+PONG\r\n" {
		return fmt.Errorf("the server answered PING with %q", answer)
	}
	return nil
}

// Agent sends a command to the guest's agent through the host that the guest is live on; args and out may be nil.
func (p *Pair) Agent(ctx context.Context, command string, args, out any) error {
	name, detail := p.find(ctx, func(vm api.VM) bool { return vm.Live })
	if name == "" {
		return fmt.Errorf("the guest is live on no host (%s)", detail)
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	conn, err := p.API(name).Vsock(ctx, Guest, wire.Port)
	if err != nil {
		return fmt.Errorf("the guest's agent through host %s: %w", name, err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	return wire.Call(conn, command, args, out)
}

// Info asks the guest's agent who it is, again if need be: agents start a little after Redis.
func (p *Pair) Info(ctx context.Context) (info wire.Info, err error) {
	err = p.wait(ctx, liveTimeout, "the guest's agent to answer", func(ctx context.Context) (bool, string) {
		if err := p.Agent(ctx, wire.Information, nil, &info); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	return info, err
}

// Shutdown lets the guest switch itself off, by its agent, and waits until it is.
func (p *Pair) Shutdown(ctx context.Context) error {
	if err := p.Agent(ctx, wire.Shutdown, wire.ShutdownArguments{Mode: wire.PowerOff}, nil); err != nil {
		return err
	}
	return p.wait(ctx, shutdownTimeout, "the guest to switch itself off", func(ctx context.Context) (bool, string) {
		var asleep int // hosts that say so; silence says nothing
		_, detail := p.find(ctx, func(vm api.VM) bool {
			if !vm.Live {
				asleep++
			}
			return false
		})
		return asleep > 0 && asleep == p.on(), detail
	})
}
