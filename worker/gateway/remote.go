package gateway

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Audience is whom a token for Stanch must be made for: a token that was made for something else is refused, so that
// whoever is shown one elsewhere cannot answer with it here.
const Audience = "stanch"

// Remote is the API in a cluster: over TLS, with a Kubernetes token that the API server reviews.
type Remote struct {
	API
	Kube kubernetes.Interface
	// Enrol gives nodes their first certificate; nil gives none.
	Enrol *Enrol
}

// Server is the HTTP server; who serves it adds TLS.
func (m *Remote) Server() *http.Server {
	m.Identify = m.who
	m.MayRead = func(r *http.Request) error { _, err := m.who(r); return err }
	handler := m.Handler()
	if m.Enrol != nil {
		mux := http.NewServeMux()
		mux.Handle("POST /v1/enrol", m.Enrol)
		mux.Handle("/", handler)
		handler = mux
	}
	return &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: 5 * time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
}

func (m *Remote) who(r *http.Request) (Speaker, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > 16<<10 {
		return Speaker{}, &problem{http.StatusUnauthorized, "say who you are with a Kubernetes token: `kubectl create token NAME --audience " + Audience + "`"}
	}
	// Before the API server is asked: a flood of bad tokens must not become a flood there.
	if !m.limits.allow("address:" + hostOf(r.RemoteAddr)) {
		return Speaker{}, &problem{http.StatusTooManyRequests, "too many requests; wait a moment"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	review, err := m.Kube.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return Speaker{}, deny("the API server cannot say whose token this is: %v", err)
	}
	if !review.Status.Authenticated || !slices.Contains(review.Status.Audiences, Audience) {
		return Speaker{}, &problem{http.StatusUnauthorized, "the token is not valid for the audience " + Audience}
	}
	name := review.Status.User.Username
	cfg, err := m.Roster.Current()
	if err != nil {
		return Speaker{}, deny("%v", err)
	}
	person, known := cfg.PersonByKubernetes(name)
	if !known {
		return Speaker{}, deny("%s is nobody in the configuration: add a person with `kubernetes: %s` under `people`", clip(name), clip(name))
	}
	return Speaker{Person: person, Proved: "Kubernetes user " + clip(name) + " by TokenReview", Key: "kubernetes:" + name}, nil
}

func hostOf(address string) string {
	if i := strings.LastIndexByte(address, ':'); i > 0 {
		return address[:i]
	}
	return address
}
