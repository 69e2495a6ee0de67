package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// progress prints lines with the time since the start, and adds up where it went.
type progress struct {
	mu     sync.Mutex
	out    io.Writer
	now    func() time.Time
	begin  time.Time
	stages []stage
}

type stage struct {
	name  string
	begin time.Time
}

func newProgress(out io.Writer, now func() time.Time) *progress {
	return &progress{out: out, now: now, begin: now()}
}

func (p *progress) elapsed() time.Duration { return p.now().Sub(p.begin) }

// say prints a line; the second and later lines of an error are indented.
func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := strings.ReplaceAll(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n", "\n            ")
	fmt.Fprintf(p.out, "[%7.1f s] %s\n", p.elapsed().Seconds(), text)
}

// print prints text as it is.
func (p *progress) print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = io.WriteString(p.out, text) // to a terminal that is gone there is nothing to say
}

// stage begins a stage, for the sum of times.
func (p *progress) stage(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stages = append(p.stages, stage{name, p.now()})
}

// spent says how long each stage took, the present one until now.
func (p *progress) spent() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.stages) == 0 {
		return ""
	}
	var parts []string
	for i, s := range p.stages {
		end := p.now()
		if i+1 < len(p.stages) {
			end = p.stages[i+1].begin
		}
		parts = append(parts, fmt.Sprintf("%s %.0f s", s.name, end.Sub(s.begin).Seconds()))
	}
	return "where the time went: " + strings.Join(parts, ", ") + "\n"
}

// firstLine is an error without its details.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
