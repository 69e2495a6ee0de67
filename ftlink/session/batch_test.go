package session

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// TestOffer: what a full network doesn't take at once is left for uncork, and
// nothing is lost, doubled or out of order.
func TestOffer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	b := newBatched(conn, &traffic{})
	random := rand.NewChaCha8([32]byte{1})
	var want []byte
	gather := func(n int) {
		piece := make([]byte, n)
		_, _ = random.Read(piece) // never fails
		want = append(want, piece...)
		b.cork()
		if _, err := b.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	left := false
	for i := 0; !left; i++ {
		if i > 1<<12 {
			t.Fatal("the network takes everything")
		}
		gather(1<<14 + i)
		if left, err = b.offer(); err != nil {
			t.Fatal(err)
		}
	}
	if b.t.bytesOut.Load() >= uint64(len(want)) {
		t.Error("nothing is left")
	}
	gather(1 << 14)
	got := make(chan []byte, 1)
	go func() {
		all, err := io.ReadAll(peer)
		if err != nil {
			t.Error(err)
		}
		got <- all
	}()
	if err := b.uncork(); err != nil {
		t.Fatal(err)
	}
	if left, err := b.offer(); left || err != nil {
		t.Errorf("with nothing gathered: left %t, %v", left, err)
	}
	gather(100)
	if left, err := b.offer(); left || err != nil {
		t.Errorf("with an idle network: left %t, %v", left, err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-got, want) {
		t.Error("other bytes have arrived")
	}
	gather(100)
	if _, err := b.offer(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed connection: %v", err)
	}
}
