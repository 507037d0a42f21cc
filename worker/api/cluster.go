package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors/truncate"
	"stanch/worker/decisions"
	"stanch/worker/httpserver"
	"stanch/worker/nodeserver"
)

// TokenAudience is the audience of tokens for Stanch. Tokens for other audiences are refused, so that whoever receives
// one elsewhere cannot use it here.
const TokenAudience = "stanch"

// Cluster is the API in a cluster: over TLS, with a Kubernetes token that the API server reviews.
type Cluster struct {
	API
	Kube kubernetes.Interface
	// Enroller issues nodes their first certificate; nil disables enrollment.
	Enroller *nodeserver.Enroller
}

// HTTPServer returns the HTTP server; the caller adds TLS.
func (m *Cluster) HTTPServer() *http.Server {
	m.Identify = m.identifyTokenUser
	m.AuthorizeRead = func(r *http.Request) error { _, err := m.identifyTokenUser(r); return err }
	handler := m.Handler()
	if m.Enroller != nil {
		mux := http.NewServeMux()
		mux.Handle("POST /v1/enroll", m.Enroller)
		mux.Handle("/", handler)
		handler = mux
	}
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: 5 * time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	}
}

func (m *Cluster) identifyTokenUser(r *http.Request) (decisions.Principal, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > 16<<10 {
		return decisions.Principal{}, httpserver.Errorf(http.StatusUnauthorized, "%s",
			"missing token; use a Kubernetes token from `kubectl create token NAME --audience "+TokenAudience+"`")
	}
	// The rate limit is checked before the token review, so that a flood of invalid tokens does not reach the API
	// server.
	if !m.AllowRequest("address:" + httpserver.PeerHost(r)) {
		return decisions.Principal{}, httpserver.TooManyRequests("too many requests; wait a moment")
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	review, err := m.Kube.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return decisions.Principal{}, httpserver.Forbidden("review the token: %v", err)
	}
	if !review.Status.Authenticated || !slices.Contains(review.Status.Audiences, TokenAudience) {
		return decisions.Principal{}, httpserver.Errorf(http.StatusUnauthorized, "%s",
			"invalid token: it is not for the audience "+TokenAudience)
	}
	name := review.Status.User.Username
	cfg, err := m.Roster.Current()
	if err != nil {
		return decisions.Principal{}, httpserver.Forbidden("%v", err)
	}
	person, known := cfg.PersonByKubernetes(name)
	if !known {
		return decisions.Principal{},
			httpserver.Forbidden("unknown Kubernetes user %s; add a person with `kubernetes: %s` under `people`",
				truncate.Name(name), truncate.Name(name))
	}
	return decisions.Principal{
		Person: person, AuthenticatedBy: "Kubernetes user " + truncate.Name(name) + " by TokenReview",
		RateLimitKey: "kubernetes:" + name,
	}, nil
}
