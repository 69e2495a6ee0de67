package pairlab

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
)

// Replace puts a fresh host in the place of one that is off, has it paired with the other one by a code, as a user does, and
// waits until it sees the volume. All that it knows before is its name and the token.
func (p *Pair) Replace(ctx context.Context, name string) error {
	key := hostkey.New()
	text, err := json.Marshal(hostcfg.Config{Name: name, Token: p.keys.token})
	if err != nil {
		return err
	}
	files := map[string][]byte{"duet/host.json": text, "duet/host.key": hostkey.Format(key)}
	if err := p.hosts[name].Reflash(ctx, files); err != nil {
		return err
	}
	p.forget(name)
	p.mu.Lock()
	p.keys.host[name] = key
	p.mu.Unlock()
	if err := p.hosts[name].Boot(); err != nil {
		return err
	}
	other := peerOf(name)
	var code string
	err = p.wait(ctx, bootTimeout, "host "+other+" to show a pairing code, and host "+name+" to hear of it", func(ctx context.Context) (bool, string) {
		h, err := p.API(other).Host(ctx)
		if err == nil && h.Code == "" {
			h, err = p.API(other).ShowCode(ctx) // refused while it hasn't noticed that its partner is dead
		}
		if err != nil {
			return false, err.Error()
		}
		code = h.Code
		h, err = p.API(name).Host(ctx)
		if err != nil {
			return false, err.Error()
		}
		return len(h.Heard) == 1 && h.Heard[0].Shows, fmt.Sprintf("host %s hears %+v", name, h.Heard)
	})
	if err != nil {
		return err
	}
	if _, err := p.API(name).Pair(ctx, code); err != nil {
		return err
	}
	return p.WaitHost(ctx, name)
}
