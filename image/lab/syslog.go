package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"

	"github.com/duet-ft/duet/image/lab/transcript"
)

// maxSyslog is the largest datagram of a log line that is read, in bytes.
const maxSyslog = 8 << 10

// syslogTarget is the file on /perm that tells gokrazy where to send what its programs print.
const syslogTarget = "remote_syslog/target"

// syslogHead is what RFC 3164 puts before a message, as Go's log/syslog writes it:
// <priority>timestamp hostname tag[pid]: message.
var syslogHead = regexp.MustCompile(`^<\d+>\S+ \S+ ([^\s\[]+)\[\d+\]: `)

// syslog collects the lines that a host's programs print. gokrazy keeps the first hundred of them until its network
// is up, so nothing is missing.
type syslog struct {
	conn net.PacketConn
	log  *transcript.Log
	file *os.File
	done chan struct{}
}

// newSyslog listens on this computer's loopback; the lab's network brings the datagrams there. Lines go to the file
// at path as well.
func newSyslog(path string) (*syslog, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s := &syslog{conn: conn, log: transcript.New(), file: f, done: make(chan struct{})}
	go s.read()
	return s, nil
}

// target is where the host must send to.
func (s *syslog) target() string {
	return fmt.Sprintf("%s:%d", TargetIP, s.conn.LocalAddr().(*net.UDPAddr).Port)
}

func (s *syslog) read() {
	defer close(s.done)
	defer s.log.End()
	out := io.MultiWriter(s.log, s.file)
	buf := make([]byte, maxSyslog)
	for {
		n, _, err := s.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the sender of an earlier datagram is gone
		}
		_, _ = out.Write(syslogLine(buf[:n]))
	}
}

// syslogLine turns a datagram into "tag: message" and one newline.
func syslogLine(b []byte) []byte {
	line := syslogHead.ReplaceAll(b, []byte("$1: "))
	for len(line) > 0 && line[len(line)-1] == '\n' {
		line = line[:len(line)-1]
	}
	return append(line[:len(line):len(line)], '\n')
}

func (s *syslog) close() error {
	err := s.conn.Close()
	<-s.done
	return errors.Join(err, s.file.Close())
}
