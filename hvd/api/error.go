package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// MaxBody is the size of the largest body of a request or of an answer, in bytes.
const MaxBody = 16 << 20

// maxLine bounds the line of an error, in bytes.
const maxLine = 1 << 10

// Error is a request that a host refused or couldn't carry out.
type Error struct {
	Status int    // of HTTP: 4xx is the caller's fault
	Line   string // what is wrong, one line
}

// Errorf makes an Error of that status.
func Errorf(status int, format string, args ...any) *Error {
	return &Error{status, OneLine(fmt.Sprintf(format, args...))}
}

// Error is the line.
func (e *Error) Error() string { return e.Line }

// errorBody is an error's JSON form.
type errorBody struct {
	Error string `json:"error"`
}

// WriteError answers a request with an error.
func WriteError(w http.ResponseWriter, e *Error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(e.Status)
	// What a client that is gone doesn't get, it can't miss.
	_ = json.NewEncoder(w).Encode(errorBody{e.Line})
}

// ReadError makes an Error of an answer that is one. It reads the body and leaves it open.
func ReadError(r *http.Response) *Error {
	b, err := io.ReadAll(io.LimitReader(r.Body, 16*maxLine))
	var body errorBody
	if err != nil || json.Unmarshal(b, &body) != nil || body.Error == "" {
		return Errorf(r.StatusCode, "unexpected answer: HTTP status %d %s", r.StatusCode, http.StatusText(r.StatusCode))
	}
	return &Error{r.StatusCode, OneLine(body.Error)}
}

// OneLine makes one line of s that a terminal can be trusted with: control characters become spaces, and it is cut to
// 1 KiB.
func OneLine(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine-3], "") + "..."
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s))
}
