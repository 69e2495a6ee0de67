package gdb

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestRealGDB has GDB itself talk to the toy.
func TestRealGDB(t *testing.T) {
	path, err := exec.LookPath("gdb")
	if err != nil {
		t.Skip("gdb is missing: install the package gdb")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		s := New(&toy{path: []uint64{0x1000, 0x1004, 0x1008, 0x1004, 0x100c}})
		for b := make([]byte, 4096); !s.Done(); {
			n, err := c.Read(b)
			if err != nil {
				break
			}
			if _, err := c.Write(s.Feed(b[:n])); err != nil {
				break
			}
		}
		served <- nil
	}()
	args := []string{"-nx", "-batch"}
	for _, c := range []string{
		"target remote " + l.Addr().String(), "stepi", "p/x $rip", "break *0x1004", "continue", "p/x $rip", "reverse-stepi",
		"p/x $rip", "reverse-continue", "p/x $rip", "x/4xb 0x2000", "delete", "continue", "p/x $rip", "reverse-continue", "p/x $rip",
		"monitor where", "detach",
	} {
		args = append(args, "-ex", c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l.Close()
	<-served
	rest := string(out)
	for _, want := range []string{
		"$1 = 0x1004\n", "$2 = 0x1004\n", "$3 = 0x1008\n", "$4 = 0x1004\n", "0x2000:\t0x00\t0x01\t0x02\t0x03\n",
		"No more reverse-execution history", "$5 = 0x100c\n", "No more reverse-execution history", "$6 = 0x1000\n", "where at 0\n",
	} {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("no %q after what comes before it:\n%s", want, out)
		}
		rest = after
	}
}
