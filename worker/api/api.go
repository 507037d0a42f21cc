// Package api is the HTTP API of the command line: on the local socket and, in a cluster, over TLS. It authenticates
// people, by the socket's peer or by a Kubernetes token, and routes what they ask to decisions and queries.
//
// It decides nothing, and no route lets a caller name themselves.
package api

import (
	"encoding/json"
	"net/http"

	"stanch/worker/decisions"
	"stanch/worker/httpserver"
	"stanch/worker/nodeserver"
)

// API is the API of the command line: on the local socket and, in a cluster, over TLS. The two differ in how they
// authenticate the caller.
type API struct {
	*decisions.Service
	NodeServer *nodeserver.Server
	// InstallationInfo describes this installation, for its status.
	InstallationInfo InstallationInfo
	// Identify authenticates the caller.
	Identify func(r *http.Request) (decisions.Principal, error)
	// AuthorizeRead returns an error if the caller may not read; nil lets every authenticated caller read.
	AuthorizeRead func(r *http.Request) error
	// IssueDrillKey issues a drill's key; nil disables it.
	IssueDrillKey func(r *http.Request) (any, error)
	// RegisterDrillTargets registers the targets of a drill before its attack; nil disables it.
	RegisterDrillTargets func(r *http.Request) (any, error)
	// ExtraRoutes are further read-only routes.
	ExtraRoutes map[string]func(r *http.Request) (any, error)
}

// Handler returns the API's routes.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	read := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+pattern, a.handleRead(func(r *http.Request) (any, error) {
			if a.AuthorizeRead != nil {
				if err := a.AuthorizeRead(r); err != nil {
					return nil, err
				}
			}
			return f(r)
		}))
	}
	read("/v1/incidents", func(r *http.Request) (any, error) { return a.viewIncidents(r) })
	read("/v1/incidents/{id}", func(r *http.Request) (any, error) { return a.viewIncident(r, r.PathValue("id")) })
	read("/v1/kill-switch", func(r *http.Request) (any, error) { return a.killSwitchStatus(r.Context()), nil })
	read("/v1/status", func(r *http.Request) (any, error) { return a.status(r) })
	read("/v1/pending", func(r *http.Request) (any, error) { return a.Queries.AllPendingApprovals(r.Context()) })
	read("/v1/leases", func(r *http.Request) (any, error) {
		return a.Queries.Leases(r.Context(), r.URL.Query().Get("all") != "")
	})
	read("/v1/nodes", func(*http.Request) (any, error) { return a.NodeServer.ConnectedNodes(), nil })
	for pattern, f := range a.ExtraRoutes {
		read(pattern, f)
	}
	a.handleDecisions(mux)
	if a.IssueDrillKey != nil {
		mux.HandleFunc("POST /v1/drill", a.handleRead(a.IssueDrillKey))
		mux.HandleFunc("POST /v1/drill/targets", a.handleRead(a.RegisterDrillTargets))
	}
	return http.MaxBytesHandler(mux, 1<<20)
}

// handleDecisions adds the routes of what people decide.
func (a *API) handleDecisions(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/vote", handleChange(a, func(r *http.Request, s decisions.Principal,
		q decisions.VoteRequest) (*decisions.VoteResult,
		error,
	) {
		return a.Vote(r.Context(), s, q)
	}))
	mux.HandleFunc("POST /v1/release", handleChange(a, func(r *http.Request, s decisions.Principal,
		q decisions.LeaseRequest) (any,
		error,
	) {
		return a.Release(r.Context(), s, q)
	}))
	mux.HandleFunc("POST /v1/extend", handleChange(a, func(r *http.Request, s decisions.Principal,
		q decisions.LeaseRequest) (any,
		error,
	) {
		return a.Extend(r.Context(), s, q)
	}))
	mux.HandleFunc("POST /v1/triage", handleChange(a, func(r *http.Request, s decisions.Principal,
		q decisions.TriageRequest) (any,
		error,
	) {
		return a.Triage(r.Context(), s, q)
	}))
	mux.HandleFunc("POST /v1/contain", handleChange(a, func(r *http.Request, s decisions.Principal,
		q decisions.ContainRequest) (any,
		error,
	) {
		return a.Contain(r.Context(), s, q)
	}))
	mux.HandleFunc("POST /v1/pause", handleChange(a, func(r *http.Request, s decisions.Principal,
		q decisions.PauseRequest,
	) (any, error) {
		before := a.killSwitchStatus(r.Context())
		if err := a.Pause(r.Context(), s, q.Reason); err != nil {
			return nil, err
		}
		return PauseResult{KillSwitchStatus: a.killSwitchStatus(r.Context()), AlreadyPaused: before.Paused &&
			before.Error == ""}, nil
	}))
	mux.HandleFunc("POST /v1/resume", handleChange(a, func(r *http.Request, s decisions.Principal, _ any) (any, error) {
		if err := a.Resume(r.Context(), s); err != nil {
			return nil, err
		}
		return a.resumeResult(r.Context()), nil
	}))
}

// handleChange handles a request that changes something. It authenticates the caller before it reads the body.
func handleChange[Q, A any](a *API, f func(*http.Request, decisions.Principal, Q) (A, error)) http.HandlerFunc {
	return a.handleRead(func(r *http.Request) (any, error) {
		s, err := a.Identify(r)
		if err != nil {
			return nil, err
		}
		var q Q
		if r.ContentLength != 0 {
			decoder := json.NewDecoder(r.Body)
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&q); err != nil {
				return nil, httpserver.BadRequest("parse the request: %v", err)
			}
		}
		out, err := f(r, s, q)
		if err != nil {
			return nil, err
		}
		return out, nil
	})
}

func (a *API) handleRead(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(httpserver.StatusOf(err))
			out = map[string]string{"error": err.Error()}
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			a.Log.Warn("answer a request", "path", r.URL.Path, "error", err)
		}
	}
}
