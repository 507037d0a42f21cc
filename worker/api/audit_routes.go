package api

import (
	"context"
	"net/http"

	"stanch/sensors/truncate"
	"stanch/worker/audit"
	"stanch/worker/httpserver"
	"stanch/worker/queries"
)

// Auditor returns timelines, verifies evidence and records incidents.
type Auditor interface {
	Audit(ctx context.Context, incident string, verify bool) (audit.Timeline, error)
	// BuildRecording returns the bytes of a recording file.
	BuildRecording(ctx context.Context, incident string, anonymise bool) ([]byte, error)
}

// AuditRoutes returns the routes that read an incident's timeline and recording.
func AuditRoutes(a Auditor) map[string]func(*http.Request) (any, error) {
	known := func(id string) error {
		if !queries.IsIncidentID(id) {
			return httpserver.NotFound("invalid incident id %q; `stanch incidents` lists the incidents", truncate.Name(id))
		}
		return nil
	}
	return map[string]func(*http.Request) (any, error){
		"/v1/audit/{id}": func(r *http.Request) (any, error) {
			if err := known(r.PathValue("id")); err != nil {
				return nil, err
			}
			return a.Audit(r.Context(), r.PathValue("id"), r.URL.Query().Get("verify") != "")
		},
		"/v1/recording/{id}": func(r *http.Request) (any, error) {
			if err := known(r.PathValue("id")); err != nil {
				return nil, err
			}
			raw, err := a.BuildRecording(r.Context(), r.PathValue("id"), r.URL.Query().Get("anonymise") != "")
			return map[string][]byte{"recording": raw}, err // as bytes, because the hash covers them
		},
	}
}
