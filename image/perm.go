package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
)

// maxPermFile is the largest file that goes to /perm, in bytes.
const maxPermFile = 1 << 20

// perm writes what the two hosts of a new pair have on /perm: DIR/a and DIR/b, for build's -perm.
func perm(args []string) error {
	flags := flag.NewFlagSet("perm", flag.ContinueOnError)
	var v hostcfg.Volume
	flags.StringVar(&v.Portal, "portal", "", "`ADDRESS[:PORT]` of the iSCSI target")
	flags.StringVar(&v.Target, "target", "", "iSCSI `NAME` of the target")
	flags.IntVar(&v.LUN, "lun", 0, "logical unit `NUMBER`")
	flags.StringVar(&v.User, "user", "", "CHAP `NAME`")
	flags.StringVar(&v.Secret, "secret", "", "CHAP `SECRET`")
	flags.StringVar(&v.Portal2, "portal2", "", "another `ADDRESS[:PORT]` of the same portal group")
	flags.StringVar(&v.TargetUser, "target-user", "", "the target's own CHAP `NAME`")
	flags.StringVar(&v.TargetSecret, "target-secret", "", "the target's own CHAP `SECRET`")
	flags.BoolVar(&v.Digests, "digests", false, "insist on CRC32C digests")
	if err := parse(flags, args); err != nil {
		return err
	}
	if flags.NArg() != 1 || v.Portal == "" || v.Target == "" {
		return errors.New("usage: go run ./image perm -portal ADDRESS -target NAME [-lun N] [-user NAME -secret SECRET] [-portal2 ADDRESS] [-target-user NAME -target-secret SECRET] [-digests] DIR")
	}
	files, err := pairFiles(v)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(flags.Arg(0), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s is there already, and keys are never overwritten: name another directory", path)
		}
		if err != nil {
			return err
		}
		_, err = f.Write(files[name])
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		fmt.Println(path)
	}
	return nil
}

// passwordLetters is how many letters of 5 bits the web pages' password has.
const passwordLetters = 16

// pairFiles makes host.json and host.key of hosts a and b: new keys, of which each host pins the other's, one token for
// both, and one password of gokrazy's web page (gokr-pw.txt). The names in the result are relative: "a/duet/host.json".
func pairFiles(v hostcfg.Volume) (map[string][]byte, error) {
	token := make([]byte, 16)
	if _, err := rand.Read(token); err != nil {
		return nil, err
	}
	password := strings.ToLower(rand.Text()[:passwordLetters]) + "\n"
	names := [2]string{"a", "b"}
	keys := [2]ed25519.PrivateKey{hostkey.New(), hostkey.New()}
	files := map[string][]byte{}
	for i, name := range names {
		peer := 1 - i
		cfg := hostcfg.Config{
			Name: name, Volume: &v, Token: hex.EncodeToString(token),
			Peer: &hostcfg.Peer{Name: names[peer], Key: hex.EncodeToString(keys[peer].Public().(ed25519.PublicKey))},
		}
		text, err := json.MarshalIndent(cfg, "", "  ")
		if err != nil {
			return nil, err
		}
		if _, err := hostcfg.Parse(text); err != nil { // a mistake in v shows here and not on a host
			return nil, err
		}
		files[name+"/duet/host.json"] = append(text, '\n')
		files[name+"/duet/host.key"] = hostkey.Format(keys[i])
		files[name+"/gokr-pw.txt"] = []byte(password)
	}
	return files, nil
}

// readFiles reads all files below dir, by their paths relative to it.
func readFiles(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || info.Size() > maxPermFile {
			return fmt.Errorf("%s is no ordinary file of at most %d bytes", filepath.Join(dir, path), maxPermFile)
		}
		files[path], err = os.ReadFile(filepath.Join(dir, path))
		return err
	})
	return files, err
}
