package iscsi

import (
	"crypto/md5"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// chapMD5 is the one algorithm that every target must know (RFC 7143, section
// 12.1.3).
const chapMD5 = "5"

// chapAnswer computes CHAP_R for a target's challenge: MD5 over identifier,
// secret and challenge (RFC 1994, section 4.1).
func chapAnswer(keys keyList, secret string) (string, error) {
	if a, ok := keys.get("CHAP_A"); ok && a != chapMD5 {
		return "", fmt.Errorf("target wants CHAP algorithm %.20s; only MD5 (5) is known", a)
	}
	ids, ok := keys.get("CHAP_I")
	if !ok {
		return "", errors.New("target's CHAP challenge has no CHAP_I")
	}
	id, err := strconv.ParseUint(ids, 0, 8)
	if err != nil {
		return "", fmt.Errorf("target's CHAP_I=%.20s is not a number from 0 to 255", ids)
	}
	cs, ok := keys.get("CHAP_C")
	if !ok {
		return "", errors.New("target's CHAP challenge has no CHAP_C")
	}
	challenge, err := binaryValue(cs)
	if err != nil {
		return "", fmt.Errorf("target's CHAP_C: %w", err)
	}
	if len(challenge) == 0 || len(challenge) > 1024 {
		return "", fmt.Errorf("target's CHAP challenge has %d bytes; expected 1 to 1024", len(challenge))
	}
	return "0x" + hex.EncodeToString(chapDigest(byte(id), secret, challenge)), nil
}

// chapDigest is the response to a challenge (RFC 1994, section 4.1).
func chapDigest(id byte, secret string, challenge []byte) []byte {
	m := md5.New()
	m.Write([]byte{id})
	m.Write([]byte(secret))
	m.Write(challenge)
	return m.Sum(nil)
}

// chapChallenge is what the target has to answer in mutual CHAP: an identifier
// and 16 random bytes, the length of the digest.
type chapChallenge struct {
	id    byte
	bytes [16]byte
}

// keys are those that carry the challenge (RFC 7143, section 12.1.3).
func (c chapChallenge) keys() keyList {
	return keyList{{"CHAP_I", strconv.Itoa(int(c.id))}, {"CHAP_C", "0x" + hex.EncodeToString(c.bytes[:])}}
}

// check tests the target's answer. An empty user takes any name.
func (c chapChallenge) check(keys keyList, user, secret string) error {
	name, named := keys.get("CHAP_N")
	answer, ok := keys.get("CHAP_R")
	if !named || !ok {
		return fmt.Errorf("%w (it didn't answer the challenge: is mutual CHAP set up there?)", ErrImpostor)
	}
	got, err := binaryValue(answer)
	if err != nil {
		return fmt.Errorf("target's CHAP_R: %w", err)
	}
	if subtle.ConstantTimeCompare(got, chapDigest(c.id, secret, c.bytes[:])) != 1 {
		return fmt.Errorf("%w (its password is another one)", ErrImpostor)
	}
	if user != "" && name != user {
		return fmt.Errorf("%w (it calls itself %.40q instead of %.40q)", ErrImpostor, name, user)
	}
	return nil
}

// binaryValue decodes a large binary value, hexadecimal (0x) or base 64 (0b)
// (RFC 7143, section 6.1).
func binaryValue(s string) ([]byte, error) {
	if len(s) < 2 {
		return nil, errors.New("not a binary value")
	}
	prefix, digits := strings.ToLower(s[:2]), s[2:]
	switch prefix {
	case "0x":
		if len(digits)%2 == 1 {
			digits = "0" + digits
		}
		return hex.DecodeString(digits)
	case "0b":
		return base64.StdEncoding.DecodeString(digits)
	}
	return nil, errors.New("not a binary value")
}
