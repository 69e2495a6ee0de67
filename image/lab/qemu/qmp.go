package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// qmp is a client of QEMU's machine protocol (docs/interop/qmp-spec): one JSON object a line, a greeting, then
// commands whose answers carry "return" or "error". Events are skipped.
type qmp struct {
	path string

	mu   sync.Mutex
	conn net.Conn
	dec  *json.Decoder
}

// qmpTimeout is how long one command may take.
const qmpTimeout = 10 * time.Second

type qmpAnswer struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// execute runs a command; out, if not nil, gets what it returns.
func (q *qmp) execute(ctx context.Context, command string, args, out any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.open(ctx); err != nil {
		return fmt.Errorf("QMP: %w", err)
	}
	err := q.command(ctx, command, args, out)
	if err != nil {
		q.close() // the stream may be out of step now
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	return nil
}

func (q *qmp) open(ctx context.Context) error {
	if q.conn != nil {
		return nil
	}
	conn, err := (&net.Dialer{Timeout: qmpTimeout}).DialContext(ctx, "unix", q.path)
	if err != nil {
		return err
	}
	q.conn, q.dec = conn, json.NewDecoder(bufio.NewReader(conn))
	if err := conn.SetDeadline(time.Now().Add(qmpTimeout)); err != nil {
		q.close()
		return err
	}
	var greeting qmpAnswer
	if err := q.dec.Decode(&greeting); err != nil || greeting.QMP == nil {
		q.close()
		return errors.Join(errors.New("no greeting"), err)
	}
	return q.command(ctx, "qmp_capabilities", nil, nil)
}

func (q *qmp) command(ctx context.Context, command string, args, out any) error {
	deadline := time.Now().Add(qmpTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := q.conn.SetDeadline(deadline); err != nil {
		return err
	}
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		return err
	}
	for {
		var a qmpAnswer
		if err := q.dec.Decode(&a); err != nil {
			return err
		}
		switch {
		case a.Error != nil:
			return fmt.Errorf("%s: %s", a.Error.Class, a.Error.Desc)
		case a.Return == nil:
			continue // an event
		case out != nil:
			return json.Unmarshal(a.Return, out)
		default:
			return nil
		}
	}
}

func (q *qmp) close() {
	if q.conn != nil {
		q.conn.Close()
		q.conn = nil
	}
}
