package rules

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/duet-ft/duet"
	root   = "../.."

	maxFileLines     = 600
	maxFunctionLines = 80
)

var update = flag.Bool("update", false, "write the golden list anew")

// TestArrows compares who imports whom with the golden list, so that a new
// arrow is a decision that a reviewer sees.
func TestArrows(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	short := func(p string) (string, bool) {
		rest, ok := strings.CutPrefix(p, module+"/")
		return rest, ok
	}
	var lines []string
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		from, _ := short(p.ImportPath)
		var to []string
		for _, i := range p.Imports {
			if s, ok := short(i); ok {
				to = append(to, s)
			}
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s: %s", from, strings.Join(to, " "))))
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	const golden = "testdata/arrows.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the imports among our packages have changed; if they should, run\n"+
			"  go test ./image/rules -update\nand have the change of %s reviewed. Now:\n%s", golden, diff(string(want), got))
	}
}

// diff shows the lines that only one side has.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var b strings.Builder
	for _, l := range w {
		if !slices.Contains(g, l) {
			fmt.Fprintln(&b, "-", l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			fmt.Fprintln(&b, "+", l)
		}
	}
	return b.String()
}

// TestDirection checks the arrows that must never be, golden list or not.
func TestDirection(t *testing.T) {
	f, err := os.Open("testdata/arrows.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		from, to, _ := strings.Cut(s.Text(), ":")
		for _, target := range strings.Fields(to) {
			if strings.HasPrefix(from, "ftlink") && !strings.HasPrefix(target, "ftlink") {
				t.Errorf("%s imports %s: ftlink knows no other part", from, target)
			}
			if strings.HasPrefix(from, "hvd") && (strings.HasPrefix(target, "appliance") || strings.HasPrefix(target, "image")) {
				t.Errorf("%s imports %s: hvd is below it", from, target)
			}
			if strings.HasPrefix(from, "appliance") && strings.HasPrefix(target, "image") {
				t.Errorf("%s imports %s: appliance is what image builds", from, target)
			}
		}
	}
}

// sources calls f for each Go file of ours, tests included.
func sources(t *testing.T, f func(path string, content []byte)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != root) && d.Name() != ".." {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n++
		f(path, b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Fatal("no Go file was found")
	}
}

func TestSizes(t *testing.T) {
	sources(t, func(path string, content []byte) {
		if n := bytes.Count(content, []byte("\n")); n > maxFileLines {
			t.Errorf("%s has %d lines, at most %d", path, n, maxFileLines)
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, content, parser.ParseComments)
		if err != nil {
			t.Error(err)
			return
		}
		for _, d := range file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := set.Position(fn.End()).Line - set.Position(fn.Pos()).Line; n > maxFunctionLines && !strings.HasSuffix(path, "_test.go") {
				t.Errorf("%s: %s has %d lines, at most %d", path, fn.Name.Name, n, maxFunctionLines)
			}
		}
	})
}

var unsafeHome = regexp.MustCompile(`/hvd/(kvm|mem)/[a-z0-9_]*_unsafe(_test)?\.go$`)

func TestUnsafeStaysHome(t *testing.T) {
	sources(t, func(path string, content []byte) {
		if bytes.Contains(content, []byte("\n\t\"unsafe\"\n")) && !unsafeHome.MatchString(path) {
			t.Errorf("%s imports unsafe", path)
		}
	})
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	documented := map[string]bool{}
	sources(t, func(path string, content []byte) {
		dir := filepath.Dir(path)
		file, err := parser.ParseFile(token.NewFileSet(), path, content, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Error(err)
			return
		}
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		documented[dir] = documented[dir] || file.Doc != nil
	})
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}
