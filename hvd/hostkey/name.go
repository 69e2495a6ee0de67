package hostkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Name is the name of a host that was given none: "duet-" and the first 6 hex digits of its key's SHA-256. All hosts
// boot the same image, so only their keys tell them apart.
func Name(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return "duet-" + hex.EncodeToString(sum[:3])
}

// DefaultToken is where a host keeps the token that it made for its API because host.json names none.
const DefaultToken = "/perm/duet/token"

// LoadOrMakeToken reads the token at path, or makes one: 26 letters and digits, 130 random bits, and a line feed. Its
// directory must be there.
func LoadOrMakeToken(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		token := strings.ToLower(rand.Text())
		return token, write(path, []byte(token+"\n"))
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 || strings.Trim(token, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return "", fmt.Errorf("%s: not a token: expected letters and digits; remove the file, and the next start makes one", path)
	}
	return token, nil
}
