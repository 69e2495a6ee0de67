package supervise

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be the children, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		child(os.Args[2])
		return
	}
	os.Exit(m.Run())
}

func child(kind string) {
	switch kind {
	case "fail":
		fmt.Println("first line")
		fmt.Fprintln(os.Stderr, "no volume: it is raining")
		os.Exit(3)
	case "polite":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		fmt.Println("bye")
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		for {
			syscall.Pause()
		}
	case "parent":
		// Supervises a child of its own, names it, and waits to be killed.
		Run(context.Background(), Spec{
			Path: os.Args[0], Args: []string{"child", "stubborn"}, Line: func(string) {},
			Changed: func(c Change) { fmt.Println(c.PID) },
		})
	}
}

// watched collects what a Spec is told.
type watched struct {
	mu      sync.Mutex
	lines   []string
	changes []Change
	news    chan struct{}
}

func watch(kind string) (*watched, Spec) {
	w := &watched{news: make(chan struct{}, 1)}
	tell := func() {
		select {
		case w.news <- struct{}{}:
		default:
		}
	}
	return w, Spec{
		Path: os.Args[0], Args: []string{"child", kind},
		Line: func(line string) {
			w.mu.Lock()
			w.lines = append(w.lines, line)
			w.mu.Unlock()
			tell()
		},
		Changed: func(c Change) {
			w.mu.Lock()
			w.changes = append(w.changes, c)
			w.mu.Unlock()
			tell()
		},
	}
}

// until waits for a condition on what was told.
func (w *watched) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for limit := time.After(20 * time.Second); ; {
		w.mu.Lock()
		ok := cond()
		w.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-w.news:
		case <-limit:
			t.Fatalf("%s: not within 20 s; lines %q, changes %+v", what, w.lines, w.changes)
		}
	}
}

func start(s Spec) (stop func(), done chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan struct{})
	go func() {
		Run(ctx, s)
		close(done)
	}()
	return cancel, done
}

func TestRestarted(t *testing.T) {
	w, s := watch("fail")
	prepared := 0
	s.Prepare = func() error { prepared++; return nil }
	stop, done := start(s)
	w.until(t, "two ends", func() bool { return len(w.changes) >= 4 })
	stop()
	<-done
	first, second := w.changes[1], w.changes[3]
	if !w.changes[0].Running || w.changes[0].PID == 0 || first.Running {
		t.Errorf("changes %+v", w.changes)
	}
	if first.Again != 0 || second.Again != time.Second {
		t.Errorf("pauses %v and %v, want none and 1 s", first.Again, second.Again)
	}
	if first.Reason != "exit status 3" || first.Last != "no volume: it is raining" {
		t.Errorf("it ended by %q, last %q", first.Reason, first.Last)
	}
	if len(w.lines) < 2 || w.lines[0] != "first line" {
		t.Errorf("lines %q", w.lines)
	}
	if prepared < 2 {
		t.Errorf("prepared %d times for 2 starts", prepared)
	}
}

func TestStopped(t *testing.T) {
	for _, c := range []struct{ kind, reason, last string }{
		{"polite", "exit status 0", "bye"},
		{"stubborn", "signal: killed", "ready"},
	} {
		t.Run(c.kind, func(t *testing.T) {
			w, s := watch(c.kind)
			s.Grace = 10 * time.Second
			if c.kind == "stubborn" {
				s.Grace = 50 * time.Millisecond
			}
			stop, done := start(s)
			w.until(t, "ready", func() bool { return len(w.lines) > 0 })
			stop()
			<-done
			last := w.changes[len(w.changes)-1]
			if !last.Final || last.Reason != c.reason || last.Last != c.last {
				t.Errorf("the last change is %+v, want reason %q, last %q", last, c.reason, c.last)
			}
			if len(w.changes) != 2 {
				t.Errorf("changes %+v, want a start and an end", w.changes)
			}
		})
	}
}

func TestCannotStart(t *testing.T) {
	w, s := watch("")
	s.Path = "/nonexistent/program"
	stop, done := start(s)
	w.until(t, "an end", func() bool { return len(w.changes) > 0 })
	stop()
	<-done
	if r := w.changes[0].Reason; !strings.Contains(r, "/nonexistent/program") || strings.Contains(r, "\n") {
		t.Errorf("reason %q, want a line that names the program", r)
	}
}

// TestDiesWithParent kills a supervising process and expects its child to die at once.
func TestDiesWithParent(t *testing.T) {
	w, s := watch("parent")
	stop, done := start(s)
	defer func() { stop(); <-done }()
	var parent int
	var line string
	w.until(t, "the grandchild's PID", func() bool {
		if len(w.lines) == 0 {
			return false
		}
		parent, line = w.changes[0].PID, w.lines[0]
		return true
	})
	pid, err := strconv.Atoi(line)
	if err != nil || pid == 0 {
		t.Fatalf("not a PID: %q", line)
	}
	if !alive(pid) {
		t.Fatalf("the grandchild %d isn't there", pid)
	}
	syscall.Kill(parent, syscall.SIGKILL)
	for limit, tick := time.After(10*time.Second), time.Tick(5*time.Millisecond); alive(pid); {
		select {
		case <-tick:
		case <-limit:
			t.Fatalf("process %d has outlived its parent by 10 s", pid)
		}
	}
}

// alive says whether a process is there and no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func TestBackoff(t *testing.T) {
	var b Backoff
	for i, want := range []int{0, 1, 2, 4, 8, 16, 30, 30, 30} {
		if got := b.Next(time.Second); got != time.Duration(want)*time.Second {
			t.Errorf("end %d: pause %v, want %d s", i+1, got, want)
		}
	}
	if got := b.Next(settled); got != 0 {
		t.Errorf("after a minute: pause %v, want none", got)
	}
	if got := b.Next(0); got != firstWait {
		t.Errorf("then: pause %v, want %v", got, firstWait)
	}
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	for _, c := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"whole", []string{"a\nb\n"}, []string{"a", "b"}},
		{"in pieces", []string{"a", "b\r", "\nc"}, []string{"ab", "c"}},
		{"empty lines", []string{"\n\na\n\n"}, []string{"a"}},
		{"too long", []string{long + "\nb\n"}, []string{long[:maxLine], "b"}},
		{"too long in pieces", []string{long, long, "\nb"}, []string{long[:maxLine], "b"}},
		{"exactly as long as allowed", []string{long[:maxLine], "\nb\n"}, []string{long[:maxLine], "b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			l := &lines{pass: func(s string) { got = append(got, s) }}
			for _, w := range c.writes {
				if n, err := l.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("Write: %d, %v", n, err)
				}
			}
			last := l.end()
			if strings.Join(got, "|") != strings.Join(c.want, "|") {
				t.Errorf("lines %.100q, want %.100q", got, c.want)
			}
			if last != c.want[len(c.want)-1] {
				t.Errorf("last line %.100q", last)
			}
		})
	}
}
