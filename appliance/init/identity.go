package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
)

const (
	passwordFile = "gokr-pw.txt" // gokrazy looks for it on /perm first
	machineFile  = "machine-id"  // for gokrazy's heartbeat, which looks here first, too
	// passwordLetters is how many letters of 5 bits a password has.
	passwordLetters = 16
	// fallbackName is a host's name when it can have no key.
	fallbackName = "duet"
)

// identity makes what is missing of a host's identity in dir, and returns the host's name. What is there is never
// replaced: the peer has pinned the key, and the operator knows the password.
func identity(dir string, say func(string)) (name string) {
	password := strings.ToLower(rand.Text()[:passwordLetters])
	if made, err := ensure(filepath.Join(dir, passwordFile), password); err != nil {
		say(fmt.Sprintf("no password, so no web page: %v", err))
	} else if made {
		say("web page: user gokrazy, password " + password)
	}
	machine := make([]byte, 16)
	rand.Read(machine)
	if _, err := ensure(filepath.Join(dir, machineFile), hex.EncodeToString(machine)); err != nil {
		say(fmt.Sprintf("no machine ID: %v", err))
	}
	name = fallbackName
	key, made, err := hostkey.LoadOrMake(filepath.Join(dir, "duet", filepath.Base(hostkey.DefaultPath)))
	if err != nil {
		say(fmt.Sprintf("no key: %v", err))
	} else {
		public, _ := key.Public().(ed25519.PublicKey)
		name = hostkey.Name(public)
		if made {
			say(fmt.Sprintf("new host key %x", []byte(public)))
		}
	}
	cfg, err := hostcfg.Load(filepath.Join(dir, "duet", filepath.Base(hostcfg.DefaultPath)))
	if err == nil && cfg.Name != "" { // netcfg and hvd tell what is wrong with a bad file
		name = cfg.Name
	}
	return name
}

// ensure makes a file of one line unless there is one, and tells whether it did.
func ensure(path, line string) (made bool, err error) {
	old, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(old)) != "" {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, renameio.WriteFile(path, []byte(line+"\n"), 0o600, renameio.IgnoreUmask())
}
