package gateway

import (
	"context"
	"net/http"

	"stanch/worker/audit"
)

// Auditor tells and verifies the story of an incident.
type Auditor interface {
	Audit(ctx context.Context, incident string, verify bool) (audit.Story, error)
	// Record gives the bytes of a recording's file.
	Record(ctx context.Context, incident string, anonymise bool) ([]byte, error)
}

// auditRoutes adds what tells stories to the local socket.
func (l *Local) auditRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/audit/{id}", l.answer(func(r *http.Request) (any, error) {
		if l.Auditor == nil || !incidentID.MatchString(r.PathValue("id")) {
			return nil, missing("%q is not an incident's id; `stanch incidents` lists them", clip(r.PathValue("id")))
		}
		return l.Auditor.Audit(r.Context(), r.PathValue("id"), r.URL.Query().Get("verify") != "")
	}))
	mux.HandleFunc("GET /v1/recording/{id}", l.answer(func(r *http.Request) (any, error) {
		if l.Auditor == nil || !incidentID.MatchString(r.PathValue("id")) {
			return nil, missing("%q is not an incident's id; `stanch incidents` lists them", clip(r.PathValue("id")))
		}
		raw, err := l.Auditor.Record(r.Context(), r.PathValue("id"), r.URL.Query().Get("anonymise") != "")
		return map[string][]byte{"recording": raw}, err // as bytes: its hash is of them
	}))
}
