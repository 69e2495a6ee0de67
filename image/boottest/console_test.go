package boottest

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api/console"
	"github.com/duet-ft/duet/image/pairlab"
)

// logIn types at the guest's serial console, where Debian's getty listens.
func (p *trial) logIn(t *testing.T) {
	conn := p.console(t)
	defer conn.Close()
	for _, c := range []struct{ keys, answer string }{
		{"\r", "login:"},
		{"root\r", "Password:"},
		{"duet\r", "root@duet-guest:~#"},
		{"echo a$((6*7))b\r", "a42b"},
	} {
		p.typeAt(t, conn, c.keys, c.answer)
	}
}

// readFiles has the guest read files from its disk. Its secondary, which reads the
// same from the volume, has to come to the same state.
func (p *trial) readFiles(t *testing.T) {
	before, err := p.look(p.protected(t))
	if err != nil {
		t.Fatal(err)
	}
	conn := p.console(t)
	defer conn.Close()
	p.typeAt(t, conn, "echo 3 > /proc/sys/vm/drop_caches; cat /usr/bin/perl /usr/bin/redis-check-rdb | wc -c; echo r$((5*5))d\r", "r25d")
	after, err := p.look(p.protected(t))
	if err != nil {
		t.Fatal(err)
	}
	if after.Epoch != before.Epoch {
		t.Fatalf("the pair changed meanwhile: epoch %d, then %d", before.Epoch, after.Epoch)
	}
	b, a := before.Counters, after.Counters
	reads, refs, asked := a.LoggedReads-b.LoggedReads, a.ReadRefs-b.ReadRefs, a.RefsAsked-b.RefsAsked
	if refs == 0 {
		t.Fatalf("of %d reads in the log, none is by reference", reads)
	}
	size := float64(a.RefLogBytes-b.RefLogBytes) / float64(refs)
	t.Logf("%d reads in the log, %d of them by reference of %.1f bytes, for %d the secondary had to ask", reads, refs, size, asked)
	if size > 64 {
		t.Error("a reference takes more than 64 bytes of log")
	}
	if asked > refs/2 {
		t.Error("the secondary reads little by itself")
	}
}

// stillLoggedIn goes on typing in the same shell, which a secondary has gone live with since.
func (p *trial) stillLoggedIn(t *testing.T) {
	conn := p.console(t)
	defer conn.Close()
	p.typeAt(t, conn, "echo c$((7*8))d\r", "c56d")
}

// console opens the console at the host where the guest is live, on a screen that was never seen.
func (p *trial) console(t *testing.T) net.Conn {
	t.Helper()
	name, err := p.pair.WaitLive(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.pair.API(name).OpenConsole(p.ctx, pairlab.Guest)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(settleTimeout))
	if _, err := conn.Write(console.Frame{Kind: console.Resume}.Append(nil)); err != nil {
		t.Fatal(err)
	}
	hello, err := console.Read(conn)
	if err != nil || hello.Kind != console.Hello {
		t.Fatalf("the console of host %s: %+v, %v", name, hello, err)
	}
	if lost := p.typist.Resumed(hello.B); lost > 0 {
		t.Errorf("host %s doesn't know %d bytes that were typed", name, lost)
	}
	return conn
}

// typeAt types keys and waits for the guest's answer.
func (p *trial) typeAt(t *testing.T, conn net.Conn, keys, answer string) {
	t.Helper()
	begin := time.Now()
	p.typist.Add([]byte(keys))
	if _, err := conn.Write(console.Frame{Kind: console.Input, Data: p.typist.Next()}.Append(nil)); err != nil {
		t.Fatal(err)
	}
	shown := ""
	for p.typist.Waiting() > 0 || !strings.Contains(shown, answer) {
		f, err := console.Read(conn)
		if err != nil {
			t.Fatalf("typed %q, waiting for %q: %v; the guest wrote %q", keys, answer, err, shown)
		}
		switch f.Kind {
		case console.Taken:
			if err := p.typist.Taken(f.A, f.B); err != nil {
				t.Fatal(err)
			}
		case console.Output:
			shown += string(f.Data)
		}
	}
	t.Logf("typed %q: answered in %.0f ms", keys, float64(time.Since(begin).Microseconds())/1000)
}
