package main

import (
	"context"
	"errors"
	"log"
	"time"

	"github.com/duet-ft/duet/appliance/netcfg/plan"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

const (
	// askTimeout is how long one DHCP message waits for its answer, and askTries how often it is sent.
	askTimeout = 2 * time.Second
	askTries   = 3
)

// dhcpClient keeps a DHCPv4 lease on the bridge (RFC 2131, section 4.4):
//
//	INIT --ask--> BOUND --T1--> RENEWING --ack--> BOUND
//	                            RENEWING --nak or lease over--> INIT (the address is removed)
type dhcpClient struct {
	hostname string
	say      changeLog
}

func (c *dhcpClient) run(ctx context.Context) {
	failures := 0
	for {
		lease, settings, err := c.acquire(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			failures++
			c.say.printf("DHCP on %s: %v; trying again", plan.Bridge, err)
			if !pause(ctx, plan.Backoff(failures)) {
				return
			}
			continue
		}
		failures = 0
		c.say.printf("DHCP gave %s", settings.Line())
		if !c.hold(ctx, lease, settings) {
			return
		}
		if err := unapply(); err != nil {
			log.Printf("removing the expired address: %v", err)
		}
	}
}

// acquire gets a new lease and applies it.
func (c *dhcpClient) acquire(ctx context.Context) (*nclient4.Lease, plan.Settings, error) {
	client, err := c.open()
	if err != nil {
		return nil, plan.Settings{}, err
	}
	defer client.Close()
	lease, err := client.Request(ctx, c.options()...)
	if err != nil {
		return nil, plan.Settings{}, err
	}
	return c.use(lease)
}

// renew asks for more time on the lease and applies what the server answers.
func (c *dhcpClient) renew(ctx context.Context, lease *nclient4.Lease) (*nclient4.Lease, plan.Settings, error) {
	client, err := c.open()
	if err != nil {
		return nil, plan.Settings{}, err
	}
	defer client.Close()
	renewed, err := client.Renew(ctx, lease, c.options()...)
	if err != nil {
		return nil, plan.Settings{}, err
	}
	return c.use(renewed)
}

func (c *dhcpClient) use(lease *nclient4.Lease) (*nclient4.Lease, plan.Settings, error) {
	s, err := plan.FromACK(lease.ACK)
	if err != nil {
		return nil, s, err
	}
	return lease, s, apply(s)
}

// hold keeps the lease renewed. It returns true when the lease is lost, false when ctx has ended.
func (c *dhcpClient) hold(ctx context.Context, lease *nclient4.Lease, s plan.Settings) bool {
	for {
		expire := time.Now().Add(s.Expire)
		if !pause(ctx, s.Renew) {
			return false
		}
		for failures := 1; ; failures++ {
			renewed, settings, err := c.renew(ctx, lease)
			if err == nil {
				c.say.printf("DHCP gave %s", settings.Line())
				lease, s = renewed, settings
				break
			}
			if ctx.Err() != nil {
				return false
			}
			var nak *nclient4.ErrNak
			if errors.As(err, &nak) || time.Now().After(expire) {
				c.say.printf("the address %s is lost: %v", s.Address, err)
				return true
			}
			c.say.printf("renewing %s: %v; trying again", s.Address, err)
			if !pause(ctx, min(plan.Backoff(failures), time.Until(expire))) {
				return false
			}
		}
	}
}

func (c *dhcpClient) open() (*nclient4.Client, error) {
	br, err := bridgeInterface()
	if err != nil {
		return nil, err
	}
	return nclient4.New(br.Name, nclient4.WithHWAddr(br.HardwareAddr),
		nclient4.WithTimeout(askTimeout), nclient4.WithRetry(askTries))
}

func (c *dhcpClient) options() []dhcpv4.Modifier {
	mods := []dhcpv4.Modifier{
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter,
			dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName),
	}
	if c.hostname != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(c.hostname)))
	}
	return mods
}
