package lab

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestInstall(t *testing.T) {
	const get = "apt-get install -y --no-install-recommends istgt ovmf"
	for name, c := range map[string]struct {
		missing []string
		isRoot  bool
		fails   int      // so many of the first commands fail
		ran     []string // what was executed
		err     string   // what the error holds; "" for success
	}{
		"nothing missing": {isRoot: true},
		"no root":         {missing: []string{"istgt", "ovmf"}, err: "as root: " + get},
		"at once":         {missing: []string{"istgt", "ovmf"}, isRoot: true, ran: []string{get}},
		"with old lists":  {missing: []string{"istgt", "ovmf"}, isRoot: true, fails: 1, ran: []string{get, "apt-get update", get}},
		"no network":      {missing: []string{"istgt", "ovmf"}, isRoot: true, fails: 2, ran: []string{get, "apt-get update"}, err: "no route"},
	} {
		t.Run(name, func(t *testing.T) {
			var said, ran []string
			run := func(_ context.Context, args []string) (string, error) {
				ran = append(ran, strings.Join(args, " "))
				if len(ran) <= c.fails {
					return "E: no route", errors.New("exit status 100")
				}
				return "", nil
			}
			err := install(t.Context(), c.missing, c.isRoot, func(line string) { said = append(said, line) }, run)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if !slices.Equal(ran, c.ran) || !slices.Equal(said, c.ran) {
				t.Errorf("ran %q, said %q, want %q", ran, said, c.ran)
			}
		})
	}
}
