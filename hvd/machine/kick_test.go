package machine

import (
	"context"
	"testing"
	"time"
)

// TestKickWhen: what a kick uses may be freed when stop has returned.
func TestKickWhen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	began, goOn := make(chan struct{}), make(chan struct{})
	kicked := false
	stop := when(ctx, func() {
		close(began)
		<-goOn
		kicked = true
	})
	cancel()
	<-began
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	select {
	case <-stopped:
		t.Fatal("stop returned while the kick was under way")
	case <-time.After(10 * time.Millisecond):
	}
	close(goOn)
	<-stopped
	if !kicked {
		t.Error("no kick")
	}
}

func TestKickWhenNotEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	stop := when(ctx, func() { t.Error("a kick behind stop") })
	stop()
	cancel()
}
