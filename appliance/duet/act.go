package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/duet-ft/duet/appliance/agent/wire"
	"github.com/duet-ft/duet/hvd/api"
)

// maxDefinition is the size of the largest definition, in bytes; the host takes no larger one.
const maxDefinition = 1 << 20

// tell makes the command for something that a VM is told.
func tell(do func(*api.Client, context.Context, string) error, done string) func(context.Context, env) error {
	return func(ctx context.Context, e env) error {
		if err := do(e.client, ctx, e.args[0]); err != nil {
			return err
		}
		_, err := fmt.Fprintf(e.out, "VM %s %s\n", e.args[0], done)
		return err
	}
}

// move makes the command for a VM that is to leave the host.
func move(do func(*api.Client, context.Context, string) error, done string) func(context.Context, env) error {
	told := tell(do, done)
	return func(ctx context.Context, e env) error {
		e.args = e.args[1:] // behind the command's second word
		return told(ctx, e)
	}
}

// protect makes the command for a VM's protection. Its state is of no use here: it changes in the seconds after.
func protect(do func(*api.Client, context.Context, string) (api.VM, error), done string) func(context.Context, env) error {
	return move(func(c *api.Client, ctx context.Context, name string) error {
		_, err := do(c, ctx, name)
		return err
	}, done)
}

func create(ctx context.Context, e env) error {
	in, name := e.in, "standard input"
	if e.args[0] != "-" {
		name = e.args[0]
		f, err := os.Open(e.args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxDefinition+1))
	if err != nil {
		return err
	}
	if len(text) > maxDefinition {
		return fmt.Errorf("%s is larger than %d bytes, so it is no VM's definition", name, maxDefinition)
	}
	if !json.Valid(text) {
		return fmt.Errorf("%s is not valid JSON", name)
	}
	v, err := e.client.Create(ctx, json.RawMessage(text))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "VM %s is defined\n", v.Name)
	return err
}

func remove(ctx context.Context, e env) error {
	if err := e.client.Delete(ctx, e.args[0]); err != nil {
		return err
	}
	_, err := fmt.Fprintf(e.out, "VM %s is deleted\n", e.args[0])
	return err
}

// showConsole prints what the guest wrote, without what could harm the terminal that shows it.
func showConsole(ctx context.Context, e env) error {
	text, err := e.client.Console(ctx, e.args[0])
	if err != nil {
		return err
	}
	text = bytes.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, text)
	_, err = e.out.Write(text)
	return err
}

// agent talks to the agent in a guest.
func agent(ctx context.Context, e env) error {
	var args, out any
	name := e.args[1]
	var info wire.Info
	switch name {
	case wire.Ping:
	case wire.Information:
		out = &info
	case wire.Shutdown:
		args = wire.ShutdownArguments{Mode: wire.PowerOff}
	case wire.Reboot:
		name, args = wire.Shutdown, wire.ShutdownArguments{Mode: wire.Reboot}
	default:
		return fmt.Errorf("%w: the agent can be told to ping, info, shutdown and reboot", errUsage)
	}
	conn, err := e.client.Vsock(ctx, e.args[0], wire.Port)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	start := time.Now()
	if err := wire.Call(conn, name, args, out); err != nil {
		if ctx.Err() != nil {
			return errors.New("the guest agent doesn't answer in time")
		}
		return err
	}
	if out == nil {
		_, err := fmt.Fprintf(e.out, "the agent of VM %s answered in %.1f ms\n", e.args[0], float64(time.Since(start).Microseconds())/1000)
		return err
	}
	return table(e.out, func(w io.Writer) {
		row(w, "boot id", "%s", info.BootID)
		row(w, "uptime", "%.2f s", info.Uptime)
		row(w, "host name", "%s", info.Hostname)
		row(w, "kernel", "%s", info.Kernel)
		for _, a := range info.Addresses {
			row(w, "address", "%s %s", a.Interface, a.Address)
		}
	})
}

// vsock copies both ways until the guest has ended its stream.
func vsock(ctx context.Context, e env) error {
	port, err := strconv.ParseUint(e.args[1], 10, 32)
	if err != nil {
		return fmt.Errorf("%w: vsock port %.40q", errUsage, e.args[1])
	}
	conn, err := e.client.Vsock(ctx, e.args[0], uint32(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		_, err := io.Copy(conn, e.in)
		half, ok := conn.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			conn.Close()
		}
	}()
	_, err = io.Copy(e.out, conn)
	if errors.Is(err, net.ErrClosed) {
		return nil // interrupted
	}
	return err
}
