// Command gotest runs go test and prints what a person wants to know: go's closing line of each package, all that a
// failed test said, and at the end the tests that were skipped, with their reasons.
//
//	go run ./image/gotest [ARGUMENTS OF go test]
//
// The Makefile uses it. It imports nothing of ours. The exit code is go test's. report.go is pure: events in, text out.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// maxLine is the longest line that go test may print, in bytes.
const maxLine = 16 << 20

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(1)
	}
	r := newReport()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		io.WriteString(os.Stdout, r.line(lines.Bytes()))
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "gotest: the output of go test:", err)
		io.Copy(io.Discard, out)
	}
	err = cmd.Wait()
	io.WriteString(os.Stdout, r.skips())
	if err != nil || lines.Err() != nil {
		os.Exit(max(1, cmd.ProcessState.ExitCode()))
	}
}
