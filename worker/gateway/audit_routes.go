package gateway

import (
	"context"
	"net/http"

	"stanch/worker/audit"
)

// Auditor tells, verifies and records incidents.
type Auditor interface {
	Audit(ctx context.Context, incident string, verify bool) (audit.Timeline, error)
	// BuildRecording gives the bytes of a recording's file.
	BuildRecording(ctx context.Context, incident string, anonymise bool) ([]byte, error)
}

// AuditRoutes are what reads an incident's story and its recording.
func AuditRoutes(a Auditor) map[string]func(*http.Request) (any, error) {
	known := func(id string) error {
		if !incidentIDPattern.MatchString(id) {
			return notFound("%q is not an incident's id; `stanch incidents` lists them", truncateText(id))
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
			return map[string][]byte{"recording": raw}, err // as bytes: its hash is of them
		},
	}
}
