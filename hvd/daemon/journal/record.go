package journal

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"

	"github.com/duet-ft/duet/hvd/api"
)

const (
	// sumLen is the length of a record's sum, in hex digits.
	sumLen = 8
	// maxRecord is the length of the longest record, in bytes, with its line feed.
	maxRecord = 32 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the checksum of a record's JSON, as it stands in front of it.
func sum(text []byte) []byte {
	b := crc32.New(castagnoli)
	b.Write(text)
	return hex.AppendEncode(nil, b.Sum(nil))
}

// encode makes the record of a clean event; nil of one that no record can hold.
func encode(e api.Event) []byte {
	text, err := json.Marshal(e)
	if err == nil && sumLen+1+len(text)+1 > maxRecord {
		e.Divergence = nil // what differs is in the line, too
		text, err = json.Marshal(e)
	}
	if err != nil {
		return nil // never: clean lets no time in that JSON can't hold
	}
	return append(append(append(sum(text), ' '), text...), '\n')
}

// decode reads a record, with or without its line feed: the last one may lack that and be whole.
func decode(line []byte) (e api.Event, ok bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	if len(line) <= sumLen || line[sumLen] != ' ' {
		return e, false
	}
	text := line[sumLen+1:]
	if !bytes.Equal(sum(text), line[:sumLen]) || json.Unmarshal(text, &e) != nil {
		return e, false
	}
	return clean(e)
}

// read gives each record of a file's content to take. What is no record is skipped up to the next line feed.
func read(r io.Reader, take func(api.Event)) error {
	in := bufio.NewReaderSize(r, maxRecord)
	for inside := false; ; { // inside a line that is too long for a record
		line, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return err
		}
		if e, ok := decode(line); ok && !inside {
			take(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		inside = err != nil
	}
}
