package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

// leaveEvery is how often a host that is drained is asked which VMs it still has.
const leaveEvery = 500 * time.Millisecond

// drain has all VMs leave the host, and waits until they have.
func drain(ctx context.Context, e env) error {
	h, err := e.client.Drain(ctx)
	if err != nil {
		return err
	}
	look := time.NewTicker(leaveEvery)
	defer look.Stop()
	for {
		list, err := e.client.VMs(ctx)
		if err != nil {
			return err
		}
		stay := staying(list)
		if len(stay) == 0 {
			_, err := fmt.Fprintf(e.out, "host %s is drained: no VM is left on it\n", h.Name)
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("host %s is drained, but these VMs haven't left: %s; they leave as soon as the other host can take them",
				h.Name, strings.Join(stay, ", "))
		}
	}
}

// staying names the VMs that have a copy on the host, with its role.
func staying(list []api.VM) (names []string) {
	for _, v := range list {
		switch v.Role {
		case "standby", "waiting", "failed":
		default:
			names = append(names, v.Name+" ("+v.Role+")")
		}
	}
	return names
}

// undrain lets VMs come to the host again.
func undrain(ctx context.Context, e env) error {
	h, err := e.client.Undrain(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "host %s takes VMs again\n", h.Name)
	return err
}
