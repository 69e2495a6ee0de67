package daemon

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/api/console"
	"github.com/duet-ft/duet/hvd/daemon/checkup"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
)

// TestMain lets the test binary be the VMs' processes, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "fake-vm" {
		if err := fakeVM(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// fakeVM serves the sockets of a VM named name. It says that it started, crashes when it is told to shut down, echoes
// on vsock port 7 and refuses the others, and on its console answers what is typed in capitals.
func fakeVM(name, dir string) error {
	if name == "broken" {
		return fmt.Errorf("no kernel was found on disk root")
	}
	live := api.Event{At: time.Now(), VM: "lies", Role: "primary", What: "went live"}
	fmt.Fprintln(os.Stderr, vmsock.EventLine(live))
	v, err := net.Listen("unix", filepath.Join(dir, vmsock.VsockName))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := v.Accept()
			if err != nil {
				return
			}
			go echo(c)
		}
	}()
	var typed uint64
	var screen *console.Server
	screen = console.New(1, func(_ context.Context, p []byte) (int, uint64, error) {
		if len(p) > 0 {
			screen.Output(bytes.ToUpper(p))
		}
		return len(p), atomic.AddUint64(&typed, uint64(len(p))), nil
	})
	screen.Output([]byte(name + " login: "))
	if err := screen.Listen(filepath.Join(dir, vmsock.ConsoleName)); err != nil {
		return err
	}
	l, err := net.Listen("unix", filepath.Join(dir, vmsock.APIName))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/vm", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(api.VM{Name: "lies", Role: "primary", Live: true, Protected: name == "protected", Epoch: uint64(os.Getpid())})
	})
	mux.HandleFunc("GET /v1/vm/console", func(w http.ResponseWriter, _ *http.Request) { w.Write(screen.Tail()) })
	mux.HandleFunc("GET /v1/vm/events", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode([]api.Event{live})
	})
	mux.HandleFunc("POST /v1/vm/start", func(w http.ResponseWriter, _ *http.Request) {
		api.WriteError(w, api.Errorf(http.StatusConflict, "it runs already"))
	})
	mux.HandleFunc("POST /v1/vm/stop", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	for _, action := range []string{"drain", "undrain", "protect", "unprotect"} {
		mux.HandleFunc("POST /v1/vm/"+action, func(http.ResponseWriter, *http.Request) {
			fmt.Fprintln(os.Stderr, "told to "+action)
		})
	}
	mux.HandleFunc("POST /v1/vm/peer", func(http.ResponseWriter, *http.Request) {
		fmt.Fprintln(os.Stderr, "told of the peer")
	})
	mux.HandleFunc("POST /v1/vm/shutdown", func(http.ResponseWriter, *http.Request) {
		fmt.Fprintln(os.Stderr, "this VM crashes")
		os.Exit(3)
	})
	return http.Serve(l, mux)
}

func echo(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); err != nil || line != "CONNECT 7\n" {
		return
	}
	fmt.Fprint(c, "OK 1073741824\n")
	io.Copy(c, r)
}

// host is a daemon under test.
type host struct {
	dir  string
	opt  Options
	addr chan string // of each listener that is opened
	mem  *volume.Memory

	// fault is that of the daemon's session.
	fault func(op volume.Op, lba uint64, blocks int) volume.Fault

	// offline is what the session says about itself, nil being online.
	offline atomic.Pointer[error]

	mu    sync.Mutex
	lines []string
	news  chan struct{}
	local []bool // for each listener that is opened

	nics   []checkup.NIC
	link   session.Config // of the hosts' own session
	screen string         // the last text
}

const goodConfig = `{"name": "a", "peer": {"name": "b", "key": "` + peerKey + `"}, "token": "s3cret",
	"volume": {"portal": "192.0.2.1", "target": "iqn.2026-01.example:duet", "lun": 0}}`

const peerKey = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"

// newHost prepares a daemon whose files are in a directory of the test, with config as host.json unless it is empty,
// a volume in memory, and enough hardware.
func newHost(t *testing.T, config string) *host {
	t.Helper()
	h := &host{dir: t.TempDir(), addr: make(chan string, 10), news: make(chan struct{}, 1), mem: volume.NewMemory(1<<17, 512)}
	file := func(name string) string { return filepath.Join(h.dir, name) }
	if config != "" {
		h.write(t, config)
	}
	h.opt = Options{
		Config: file("host.json"), Key: file("host.key"), Events: file("events.log"), RunDir: file("run"), Version: "1", Token: file("none/token"),
		Log: h.log,
		Command: func(c Child) (string, []string) {
			if c.Config != file("host.json") || filepath.Dir(c.RunDir) != file("run") || filepath.Base(c.RunDir) != c.Name {
				t.Errorf("a VM gets %+v", c)
			}
			return os.Args[0], []string{"fake-vm", c.Name, c.RunDir}
		},
		Listen: func(local bool) (net.Listener, error) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				h.mu.Lock()
				h.local = append(h.local, local)
				h.mu.Unlock()
				h.addr <- l.Addr().String()
			}
			return l, err
		},
		NICs: func() []checkup.NIC { return h.nics },
		Link: func(ctx context.Context, cfg session.Config) error {
			h.mu.Lock()
			h.link = cfg
			h.mu.Unlock()
			<-ctx.Done()
			return nil
		},
		Screen: func(text string) {
			h.mu.Lock()
			h.screen = text
			h.mu.Unlock()
		},
		Hardware: func() (Hardware, error) { return Hardware{MemoryMiB: 1024, Locator: "trap"}, nil },
		Open: func(_ context.Context, l Login) (Store, error) {
			s := h.mem.Session(l.Host)
			s.Fault = h.fault
			return Store{
				Blocks: s,
				Join:   func(ctx context.Context) (string, error) { return "", s.Join(ctx) },
				ShutOut: func(ctx context.Context, keeper pair.HostID) error {
					list, _, err := s.Registrations(ctx)
					for _, r := range list {
						if define.Keeper(nexus.Initiator(r.Port.Initiator)).ID() == keeper {
							err = errors.Join(err, s.Fence(ctx, r.Port))
						}
					}
					return err
				},
				Err:   func() error { return h.err() },
				Close: func() error { return nil },
			}, nil
		},
		Poll: 20 * time.Millisecond, Retry: 20 * time.Millisecond,
	}
	return h
}

// err is why the session is offline, or nil.
func (h *host) err() error {
	if e := h.offline.Load(); e != nil {
		return *e
	}
	return nil
}

func (h *host) write(t *testing.T, config string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, "host.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (h *host) log(line string) {
	h.mu.Lock()
	h.lines = append(h.lines, line)
	h.mu.Unlock()
	select {
	case h.news <- struct{}{}:
	default:
	}
}

// count says how many lines contain text.
func (h *host) count(text string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lines {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

func (h *host) format(t *testing.T) *volume.Volume {
	t.Helper()
	ctx := context.Background()
	s := h.mem.Session("tool")
	if err := volume.Format(ctx, s); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// join lets the tool's session write beside the daemon's.
func (h *host) join(t *testing.T) {
	t.Helper()
	if err := h.mem.Session("tool").Join(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// start runs the daemon until the test ends, or end is called.
func (h *host) start(t *testing.T) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, h.opt) }()
	var once sync.Once
	end = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(end)
	return end
}

// client waits for the API and returns a client that pins the host's key.
func (h *host) client(t *testing.T, token string) *api.Client {
	t.Helper()
	var addr string
	select {
	case addr = <-h.addr:
	case <-time.After(20 * time.Second):
		t.Fatalf("no API within 20 s; lines %q", h.lines)
	}
	cfg := api.Config{Address: addr, Token: token}
	if key, err := hostkey.Load(h.opt.Key); err == nil {
		cfg.Fingerprint = api.Fingerprint(key.Public().(ed25519.PublicKey))
	}
	c := api.Dial(cfg)
	t.Cleanup(c.Close)
	return c
}

// eventually waits until cond holds.
func (h *host) eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	limit, tick := time.After(20*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-h.news:
		case <-tick.C:
		case <-limit:
			h.mu.Lock()
			defer h.mu.Unlock()
			t.Fatalf("%s: not within 20 s; lines\n%s", what, strings.Join(h.lines, "\n"))
		}
	}
}
