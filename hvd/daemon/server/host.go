package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/duet-ft/duet/hvd/api"
)

// maxPair bounds the body of a request to pair, in bytes.
const maxPair = 1 << 10

func (h *handler) pair(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
	defer cancel()
	var body struct {
		Code string `json:"code"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPair))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		api.WriteError(w, api.Errorf(http.StatusBadRequest, `the body must be {"code": "4711-0815"}, or {} to show a code here: %v`, err))
		return
	}
	host, err := h.b.Pair(ctx, body.Code)
	answer(w, host, err)
}

func (h *handler) unpair(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
	defer cancel()
	host, err := h.b.Unpair(ctx)
	answer(w, host, err)
}

func (h *handler) check(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readLimit)
	defer cancel()
	answer(w, h.b.Check(ctx), nil)
}
