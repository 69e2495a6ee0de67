package iscsi

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxText limits the text of one negotiation step, over all continued PDUs.
const maxText = 64 << 10

// keyValue is one "key=value" of a text negotiation (RFC 7143, section 6.1).
type keyValue struct{ key, value string }

type keyList []keyValue

func (l keyList) get(key string) (string, bool) {
	for _, kv := range l {
		if kv.key == key {
			return kv.value, true
		}
	}
	return "", false
}

// encode joins the pairs, each closed by a zero byte.
func (l keyList) encode() []byte {
	var b bytes.Buffer
	for _, kv := range l {
		b.WriteString(kv.key)
		b.WriteByte('=')
		b.WriteString(kv.value)
		b.WriteByte(0)
	}
	return b.Bytes()
}

// parseKeys is the inverse of encode. It refuses what RFC 7143 section 6.1
// refuses, except for values longer than 255 bytes, which CHAP needs.
func parseKeys(text []byte) (keyList, error) {
	l, err := parsePairs(text)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool, len(l))
	for _, kv := range l {
		if seen[kv.key] {
			return nil, fmt.Errorf("negotiation text holds %s twice", kv.key)
		}
		seen[kv.key] = true
	}
	return l, nil
}

// parsePairs is parseKeys for texts in which keys may come again: answers to
// SendTargets (RFC 7143, appendix C).
func parsePairs(text []byte) (keyList, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("negotiation text of %d bytes", len(text))
	}
	var l keyList
	for len(text) > 0 {
		item, rest, closed := bytes.Cut(text, []byte{0})
		text = rest
		if len(item) == 0 { // some targets pad with zero bytes
			continue
		}
		if !closed {
			return nil, errors.New("negotiation text isn't closed by a zero byte")
		}
		k, v, ok := strings.Cut(string(item), "=")
		if !ok || k == "" || len(k) > 63 {
			return nil, fmt.Errorf("negotiation text holds %.40q instead of key=value", item)
		}
		l = append(l, keyValue{k, v})
	}
	return l, nil
}

// number parses a numerical value (decimal, or hexadecimal with 0x) and checks
// its range.
func (l keyList) number(key string, lo, hi, missing int) (int, error) {
	s, ok := l.get(key)
	if !ok {
		return missing, nil
	}
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || int(n) < lo || int(n) > hi {
		return 0, fmt.Errorf("target answers %s=%.40s; expected a number from %d to %d", key, s, lo, hi)
	}
	return int(n), nil
}

// yes parses a boolean value.
func (l keyList) yes(key string, missing bool) (bool, error) {
	s, ok := l.get(key)
	switch {
	case !ok:
		return missing, nil
	case s == "Yes":
		return true, nil
	case s == "No":
		return false, nil
	}
	return false, fmt.Errorf("target answers %s=%.40s; expected Yes or No", key, s)
}
