package journal

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/google/renameio/v2"
)

// store is where the records are kept: a file, or in tests one that fails.
type store interface {
	// replace makes b all that is kept, at once or not at all.
	replace(b []byte) error
	// add puts b behind what is kept. An error may leave a part of it there.
	add(b []byte) error
	close()
}

// file is a store on disk. What a call wrote is on the disk when it returns.
type file struct {
	path string
	f    *os.File // nil: it has to be replaced first
}

func (s *file) replace(b []byte) error {
	s.close()
	if err := renameio.WriteFile(s.path, b, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		s.f = f
	}
	return err
}

func (s *file) add(b []byte) error {
	if _, err := s.f.Write(b); err != nil {
		return err
	}
	return s.f.Sync()
}

func (s *file) close() {
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
}

// load reads the events of the file at path; none if it isn't there.
func load(path string) (list []api.Event, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	err = read(io.LimitReader(f, 2*maxFile), func(e api.Event) { list = append(list, e) })
	return list, err
}
