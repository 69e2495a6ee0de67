package server

import (
	"net"
	"sync"
)

// connections are those that are open.
type connections struct {
	mu     sync.Mutex
	all    map[net.Conn]struct{}
	closed bool
}

// add says whether there is room for one more.
func (c *connections) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.all) >= MaxConnections {
		return false
	}
	c.all[conn] = struct{}{}
	return true
}

func (c *connections) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, conn)
}

// closeAll closes all connections, and lets none in any more. Those that were taken over from package http's server,
// which it doesn't close, are among them.
func (c *connections) closeAll() {
	c.mu.Lock()
	c.closed = true
	var list []net.Conn
	for conn := range c.all {
		list = append(list, conn)
	}
	c.mu.Unlock()
	for _, conn := range list {
		conn.Close()
	}
}

// limited is a listener that closes what there is no room for.
type limited struct {
	net.Listener
	open *connections
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &counted{Conn: conn, open: l.open}
		if l.open.add(c) {
			return c, nil
		}
		conn.Close()
	}
}

// counted is a connection that gives its place back when it is closed.
type counted struct {
	net.Conn
	open *connections
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.open.remove(c)
	return c.Conn.Close()
}

// CloseWrite ends the stream in one direction.
func (c *counted) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
