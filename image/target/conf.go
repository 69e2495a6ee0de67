package target

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// write puts istgt's configuration into the directory and returns its path.
// The syntax is described in istgt.conf of the package's examples.
func (c Config) write() (string, error) {
	auth := filepath.Join(c.Dir, "auth.conf")
	users, method := "", "None"
	if c.User != "" {
		method = "CHAP"
		users = fmt.Sprintf("  Auth \"%s\" \"%s\"", c.User, c.Secret)
		if c.OwnUser != "" {
			method = "CHAP Mutual"
			users += fmt.Sprintf(" \"%s\" \"%s\"", c.OwnUser, c.OwnSecret)
		}
		users += "\n"
	}
	if err := os.WriteFile(auth, []byte("[AuthGroup1]\n"+users), 0o600); err != nil {
		return "", err
	}
	netmask := "ALL"
	address := c.Address
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	portals := fmt.Sprintf("Portal DA1 %s:%d", address, c.Port)
	if c.Second {
		portals += fmt.Sprintf("\n  Portal DA2 %s:%d", address, c.secondPort)
	}
	base, suffix, _ := strings.Cut(name, ":")
	var b strings.Builder
	fmt.Fprintf(&b, `[Global]
  NodeBase "%s"
  PidFile %s
  AuthFile %s
  MediaDirectory %s
  LogFacility "local7"
  Timeout 30
  NopInInterval 20
  DiscoveryAuthMethod None
  MaxSessions 64
  MaxConnections 8
  MaxR2T 32
  MaxOutstandingR2T 16
  DefaultTime2Wait 2
  DefaultTime2Retain 60
  FirstBurstLength 262144
  MaxBurstLength 1048576
  MaxRecvDataSegmentLength 262144
  InitialR2T Yes
  ImmediateData Yes
  DataPDUInOrder Yes
  DataSequenceInOrder Yes
  ErrorRecoveryLevel 0
`, base, filepath.Join(c.Dir, "istgt.pid"), auth, c.Dir)
	fmt.Fprintf(&b, `[UnitControl]
  AuthMethod None
[PortalGroup1]
  %s
[InitiatorGroup1]
  InitiatorName "ALL"
  Netmask %s
[LogicalUnit1]
  TargetName %s
  Mapping PortalGroup1 InitiatorGroup1
  AuthMethod %s
  AuthGroup AuthGroup1
  UseDigest Auto
  UnitType Disk
  UnitInquiry "Duet" "test volume" "0001" "1000000001"
  BlockLength %d
  QueueDepth %d
  LUN0 Storage %s %dMB
`, portals, netmask, suffix, method, c.BlockSize, c.QueueDepth, c.File, c.Size>>20)
	conf := filepath.Join(c.Dir, "istgt.conf")
	return conf, os.WriteFile(conf, []byte(b.String()), 0o600)
}

// lockThread runs f on a thread of its own.
func lockThread(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f()
}
