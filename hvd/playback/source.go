package playback

import (
	"errors"
	"io"
	"sort"

	"github.com/duet-ft/duet/hvd/recording"
)

// source is a recording's log, by pieces. A piece is read in order the first time
// and looked up in the file when it is wanted again.
type source struct {
	r      *recording.Reader
	file   io.ReaderAt
	index  []place
	damage error // why there is no more; nil at the proper end
	over   bool
}

// place is where a piece is.
type place struct {
	at   recording.Ref
	lsn  uint64
	size int
}

type piece struct {
	lsn   uint64
	bytes []byte
}

// piece returns the piece with that number; nil when the log ends before it.
func (s *source) piece(n int) (*piece, error) {
	if n < len(s.index) {
		b, err := recording.ReadAt(s.file, s.index[n].at)
		if err != nil {
			return nil, err
		}
		lsn, log, err := b.Log()
		return &piece{lsn, log}, err
	}
	if s.over {
		return nil, nil
	}
	lsn, log, at, err := s.r.Log()
	switch {
	case err == nil:
		s.index = append(s.index, place{at, lsn, len(log)})
		return &piece{lsn, log}, nil
	case errors.Is(err, io.EOF):
		s.over = true
		return nil, nil
	case errors.Is(err, recording.ErrDamaged):
		s.over, s.damage = true, err
		return nil, nil
	}
	return nil, err
}

// find is the number of the piece that holds an LSN that was read before.
func (s *source) find(lsn uint64) int {
	return sort.Search(len(s.index), func(i int) bool { return s.index[i].lsn+uint64(s.index[i].size) > lsn })
}

func (s *source) end() *recording.End { return s.r.End() }
