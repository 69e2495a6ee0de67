package matrix

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the README's tables anew")

const (
	readme       = "README.md"
	begin, ended = "<!-- the tables of package matrix: go test ./image/matrix -update -->\n", "<!-- end of the tables -->\n"
)

// TestReadme compares what users are told with what is tested.
func TestReadme(t *testing.T) {
	b, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(b), begin)
	got, tail, closed := strings.Cut(rest, ended)
	if !found || !closed {
		t.Fatalf("%s lacks the marks %q and %q", readme, begin, ended)
	}
	want := "\n" + Table(Cells())
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s says something else than the cells: go test ./image/matrix -update writes it anew, and the change is reviewed", readme)
	}
	if err := os.WriteFile(readme, []byte(head+begin+want+ended+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCells looks for cells that can't be meant.
func TestCells(t *testing.T) {
	names := map[string]bool{}
	moments := map[When]int{}
	for _, c := range Cells() {
		name := c.Name()
		switch {
		case names[name]:
			t.Errorf("two cells are called %s", name)
		case strings.ContainsAny(name, " |"):
			t.Errorf("%q is no name", name)
		case strings.Contains(c.Breaks()+c.Sees, "|") || strings.Contains(c.Breaks(), "%!"):
			t.Errorf("%s: %q and %q don't fit into a table", name, c.Breaks(), c.Sees)
		case c.Wait == 0 && !c.Restarts:
			t.Errorf("%s: nobody says how long clients wait", name)
		case c.Calm && c.Serves != Stays && c.Serves != Unseen || c.Restarts && c.Serves != Waits:
			t.Errorf("%s contradicts itself", name)
		case c.Restarts && c.Quick:
			t.Errorf("%s cuts the clients of make test off", name)
		}
		for _, h := range c.Harm {
			if h.apply == nil || h.heal == nil {
				t.Errorf("%s: %s can't be applied and healed", name, h.Name)
			}
		}
		names[name] = true
		moments[c.When]++
	}
	for _, w := range []When{Protected, Seeding, SwitchingOver} {
		if moments[w] == 0 {
			t.Errorf("no cell while the VM is %v", w)
		}
	}
}
