package server

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"
)

// recording passes a recording on while it is made. A client that takes nothing for writeTimeout is cut off, and so
// are all of this answer's bytes behind: the file has no end then, and says so.
func (h *handler) recording(w http.ResponseWriter, r *http.Request) {
	a, err := h.b.Stream(r.Context(), r.PathValue("name"), "/recording?for="+url.QueryEscape(r.URL.Query().Get("for")))
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer a.Body.Close()
	w.Header().Set("Content-Type", a.Header.Get("Content-Type"))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(a.StatusCode)
	control := http.NewResponseController(w)
	for buf := make([]byte, 64<<10); ; {
		n, err := a.Body.Read(buf)
		if n > 0 {
			if control.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
				panic(http.ErrAbortHandler)
			}
			if _, err := w.Write(buf[:n]); err != nil {
				panic(http.ErrAbortHandler)
			}
			if control.Flush() != nil {
				panic(http.ErrAbortHandler)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return
		default:
			panic(http.ErrAbortHandler)
		}
	}
}
