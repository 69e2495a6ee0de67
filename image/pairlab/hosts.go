package pairlab

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/lab/ether"
	"github.com/duet-ft/duet/image/target/proxy"
)

const (
	// chapUser is the initiators' name for CHAP.
	chapUser = "duet"
	// bootTimeout is how long a host may take to boot and to reach the volume; computers that do other work as well
	// are slow.
	bootTimeout = 3 * time.Minute
)

// keys are the secrets of one pair, made anew for each.
type keys struct {
	host   map[string]ed25519.PrivateKey
	token  string // of both hosts' interfaces
	secret string // of CHAP
}

func makeKeys() keys {
	k := keys{host: map[string]ed25519.PrivateKey{}, token: randomHex(16), secret: randomHex(7)}
	for _, name := range Names {
		k.host[name] = hostkey.New()
	}
	return k
}

// randomHex returns n random bytes as text.
func randomHex(n int) string {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		panic(err) // documented never to happen
	}
	return hex.EncodeToString(b)
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func peerOf(name string) string {
	if name == Names[0] {
		return Names[1]
	}
	return Names[0]
}

// Peer is the name of the other host.
func (p *Pair) Peer(name string) string { return peerOf(name) }

// perm makes the files of a host's /perm.
func (p *Pair) perm(name string) (map[string][]byte, error) {
	peer, port := peerOf(name), p.Target.Port()
	if x := p.proxies[name]; x != nil {
		port = x.Port()
	}
	cfg := hostcfg.Config{
		Name: name,
		Peer: &hostcfg.Peer{Name: peer, Key: hex.EncodeToString(public(p.keys.host[peer]))},
		Volume: &hostcfg.Volume{
			Portal: net.JoinHostPort(lab.TargetIP, fmt.Sprint(port)), Target: p.Target.IQN(),
			User: chapUser, Secret: p.keys.secret,
		},
		Token: p.keys.token,
	}
	b, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return nil, err
	}
	if _, err := hostcfg.Parse(b); err != nil { // a host would say so much later
		return nil, fmt.Errorf("host.json of %s: %w", name, err)
	}
	return map[string][]byte{"duet/host.json": b, "duet/host.key": hostkey.Format(p.keys.host[name])}, nil
}

func (p *Pair) newHost(ctx context.Context, core int, name string) error {
	perm, err := p.perm(name)
	if err != nil {
		return err
	}
	direct := map[string]*ether.Port{Names[0]: p.Cable.A, Names[1]: p.Cable.B}[name]
	p.hosts[name], err = p.Lab.NewHost(ctx, lab.HostConfig{
		Name: name, Number: numbers[name], MemoryMiB: p.cfg.MemoryMiB, Core: core, Direct: direct, Perm: perm,
		Cmdline: p.cfg.Cmdline, Extra: slices.Concat(p.cfg.Extra, p.cfg.HostExtra[name]),
	})
	return err
}

// Host is the host of that name, "a" or "b".
func (p *Pair) Host(name string) *lab.Host { return p.hosts[name] }

// Proxy is what stands between a host and the volume; nil unless Config.Proxied.
func (p *Pair) Proxy(name string) *proxy.Proxy { return p.proxies[name] }

// Token is what the hosts' interfaces ask for.
func (p *Pair) Token() string { return p.keys.token }

// API talks to the host of that name, whose key it pins.
func (p *Pair) API(name string) *api.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clients[name] == nil {
		p.clients[name] = api.Dial(api.Config{
			Address: p.hosts[name].IP(), Token: p.keys.token, Fingerprint: api.Fingerprint(public(p.keys.host[name])),
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				return p.Lab.Net.Dial(ctx, address)
			},
		})
	}
	return p.clients[name]
}

// Kill ends a host by SIGKILL to its QEMU.
func (p *Pair) Kill(name string) error {
	err := p.hosts[name].Kill()
	p.forget(name)
	return err
}

// forget drops the connections to a host that is gone: nobody will ever answer on them.
func (p *Pair) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.clients[name]; c != nil {
		c.Close()
		delete(p.clients, name)
	}
}

// Refit gives a host that is off other arguments of its own (see Config.HostExtra), as if it were another computer.
func (p *Pair) Refit(name string, extra []string) {
	p.hosts[name].Refit(slices.Concat(p.cfg.Extra, extra))
}

// Restart boots a host that was killed, and waits until it is up and sees the volume.
func (p *Pair) Restart(ctx context.Context, name string) error {
	if err := p.hosts[name].Boot(); err != nil {
		return err
	}
	return p.WaitHost(ctx, name)
}

// WaitHost waits until a host's interface answers, and KVM and the volume are all right.
func (p *Pair) WaitHost(ctx context.Context, name string) error {
	return p.wait(ctx, bootTimeout, "host "+name+" to be up with KVM and the volume", func(ctx context.Context) (bool, string) {
		select {
		case <-p.hosts[name].Machine().Done():
			return false, fmt.Sprintf("its QEMU has ended: %v", p.hosts[name].Machine().Err())
		default:
		}
		h, err := p.API(name).Host(ctx)
		if err != nil {
			return false, err.Error()
		}
		return h.KVM == "ok" && h.Volume == "ok", fmt.Sprintf("KVM: %s; volume: %s", h.KVM, h.Volume)
	})
}
