package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// problem is an error with its HTTP status.
type problem struct {
	code int
	text string
}

func (p *problem) Error() string { return p.text }

func deny(format string, args ...any) error {
	return &problem{http.StatusForbidden, fmt.Sprintf(format, args...)}
}

func missing(format string, args ...any) error {
	return &problem{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

// API is what the command line uses: on the local socket and, in a cluster, over TLS. They differ in how they prove
// who speaks.
type API struct {
	*Decider
	Hub *Hub
	// Identify proves who speaks.
	Identify func(r *http.Request) (Speaker, error)
	// MayRead says whether who speaks may read; nil lets everybody who gets here.
	MayRead func(r *http.Request) error
	// Drill makes a drill's key; nil makes none.
	Drill func(r *http.Request) (any, error)
	// DrillTargets registers what a drill is about to attack; nil registers nothing.
	DrillTargets func(r *http.Request) (any, error)
	// More are further routes that read.
	More map[string]func(r *http.Request) (any, error)
}

// Handler is the API's routes.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	read := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+pattern, a.answer(func(r *http.Request) (any, error) {
			if a.MayRead != nil {
				if err := a.MayRead(r); err != nil {
					return nil, err
				}
			}
			return f(r)
		}))
	}
	read("/v1/incidents", func(r *http.Request) (any, error) { return a.views(r) })
	read("/v1/incidents/{id}", func(r *http.Request) (any, error) { return a.view(r, r.PathValue("id")) })
	read("/v1/switch", func(r *http.Request) (any, error) { return a.switchState(r.Context()), nil })
	read("/v1/status", func(r *http.Request) (any, error) { return a.status(r) })
	read("/v1/pending", func(r *http.Request) (any, error) { return a.Reader.AllPending(r.Context()) })
	read("/v1/leases", func(r *http.Request) (any, error) {
		return a.Reader.Leases(r.Context(), r.URL.Query().Get("all") != "")
	})
	read("/v1/nodes", func(*http.Request) (any, error) { return a.Hub.Nodes(), nil })
	for pattern, f := range a.More {
		read(pattern, f)
	}
	mux.HandleFunc("POST /v1/vote", change(a, func(r *http.Request, s Speaker, q VoteRequest) (*Answer, error) {
		return a.Vote(r.Context(), s, q)
	}))
	mux.HandleFunc("POST /v1/release", change(a, func(r *http.Request, s Speaker, q LeaseRequest) (any, error) { return a.Release(r.Context(), s, q) }))
	mux.HandleFunc("POST /v1/extend", change(a, func(r *http.Request, s Speaker, q LeaseRequest) (any, error) { return a.Extend(r.Context(), s, q) }))
	mux.HandleFunc("POST /v1/mark", change(a, func(r *http.Request, s Speaker, q MarkRequest) (any, error) { return a.Mark(r.Context(), s, q) }))
	mux.HandleFunc("POST /v1/contain", change(a, func(r *http.Request, s Speaker, q ContainRequest) (any, error) { return a.Contain(r.Context(), s, q) }))
	mux.HandleFunc("POST /v1/stop", change(a, func(r *http.Request, s Speaker, q PauseRequest) (any, error) {
		before := a.switchState(r.Context())
		if err := a.Stop(r.Context(), s, q.Reason); err != nil {
			return nil, err
		}
		return Paused{Pause: a.switchState(r.Context()), Already: before.Paused && before.Error == ""}, nil
	}))
	mux.HandleFunc("POST /v1/resume", change(a, func(r *http.Request, s Speaker, _ any) (any, error) {
		if err := a.Resume(r.Context(), s); err != nil {
			return nil, err
		}
		return a.resumed(r.Context()), nil
	}))
	if a.Drill != nil {
		mux.HandleFunc("POST /v1/drill", a.answer(a.Drill))
		mux.HandleFunc("POST /v1/drill/targets", a.answer(a.DrillTargets))
	}
	return http.MaxBytesHandler(mux, 1<<20)
}

// change answers a request that changes something: who speaks is proved before what they say is read.
func change[Q, A any](a *API, f func(*http.Request, Speaker, Q) (A, error)) http.HandlerFunc {
	return a.answer(func(r *http.Request) (any, error) {
		s, err := a.Identify(r)
		if err != nil {
			return nil, err
		}
		var q Q
		if r.ContentLength != 0 {
			decoder := json.NewDecoder(r.Body)
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&q); err != nil {
				return nil, &problem{http.StatusBadRequest, "the request cannot be read: " + err.Error()}
			}
		}
		out, err := f(r, s, q)
		if err != nil {
			return nil, err
		}
		return out, nil
	})
}

func (a *API) answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(statusOf(err))
			out = map[string]string{"error": err.Error()}
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			a.Log.Warn("answer a request", "path", r.URL.Path, "error", err)
		}
	}
}

func statusOf(err error) int {
	if p, ok := errors.AsType[*problem](err); ok {
		return p.code
	}
	return http.StatusInternalServerError
}
