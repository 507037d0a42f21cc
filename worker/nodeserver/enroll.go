package nodeserver

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors/attestation"
	"stanch/sensors/truncate"
	"stanch/worker/httpserver"
	"stanch/worker/ratelimit"
)

// EnrollAudience is the audience of a sensor's token. The API server accepts such a token for nothing.
const EnrollAudience = "stanch-gateway"

// Enroller issues a node's first certificate. The node proves its identity with its sensor's token, which Kubernetes
// issued for one pod on one node: there is no shared secret, and a compromised node gets a certificate for itself only.
type Enroller struct {
	Kube kubernetes.Interface
	// Namespace and ServiceAccount are those of the sensor's pods.
	Namespace, ServiceAccount string
	SignCSR                   func(ctx context.Context, node string, csr []byte) ([]byte, error)
	Log                       *slog.Logger
	// KeySet contains the authority's keys, which the node pins.
	KeySet attestation.KeySet

	addressLimiter ratelimit.PerCaller
	renewalLimiter ratelimit.PerCaller
}

// EnrollRequest is the body that a sensor posts; its token is in the header.
type EnrollRequest struct {
	CSR []byte `json:"csr"`
}

// EnrollResponse is the response to a sensor.
type EnrollResponse struct {
	Node        string `json:"node"`
	Certificate string `json:"certificate"`
	// Keys are the keys with which the node verifies commands from now on.
	Keys attestation.KeySet `json:"keys"`
}

// ServeHTTP handles an enrollment request.
func (e *Enroller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := e.enroll(r)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e.Log.Warn("refused to enroll a sensor", "from", httpserver.PeerHost(r), "error", err)
		w.WriteHeader(httpserver.StatusOf(err))
		_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
		return
	}
	e.Log.Info("a sensor was enrolled", "node", answer.Node, "from", httpserver.PeerHost(r))
	_ = json.NewEncoder(w).Encode(answer)
}

func (e *Enroller) enroll(r *http.Request) (*EnrollResponse, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > 16<<10 {
		return nil, httpserver.Errorf(http.StatusUnauthorized, "missing token; send the sensor's service account token")
	}
	if !e.addressLimiter.Allow(httpserver.PeerHost(r), ratelimit.People()) {
		return nil, httpserver.TooManyRequests("too many requests; wait a moment")
	}
	var q EnrollRequest
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 16<<10)).Decode(&q); err != nil {
		return nil, httpserver.BadRequest("parse the request: %v", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	node, err := e.nodeForToken(ctx, token)
	if err != nil {
		return nil, err
	}
	if !e.renewalLimiter.Allow(node, renewalLimit()) {
		return nil, httpserver.TooManyRequests("too many requests: this node just received a certificate; wait a moment")
	}
	certificate, err := e.SignCSR(ctx, node, q.CSR)
	if err != nil {
		return nil, httpserver.BadRequest("%v", err)
	}
	return &EnrollResponse{Node: node, Certificate: string(certificate), Keys: e.KeySet}, nil
}

// The extra claims of a token that is bound to a pod.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// nodeForToken returns the node of the pod that a token was issued for, according to the API server only.
func (e *Enroller) nodeForToken(ctx context.Context, token string) (string, error) {
	review, err := e.Kube.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{EnrollAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", httpserver.Errorf(http.StatusServiceUnavailable, "review the token: the API server is unavailable")
	}
	s := review.Status
	if !s.Authenticated || !slices.Contains(s.Audiences, EnrollAudience) {
		return "", httpserver.Errorf(http.StatusUnauthorized, "%s",
			"invalid token: it is not for the audience "+EnrollAudience)
	}
	if want := fmt.Sprintf("system:serviceaccount:%s:%s", e.Namespace, e.ServiceAccount); s.User.Username != want {
		return "", httpserver.Forbidden("invalid token: %s is not the sensor's service account",
			truncate.Name(s.User.Username))
	}
	name, uid := singleValue(s.User.Extra[extraPodName]), singleValue(s.User.Extra[extraPodUID])
	if name == "" || uid == "" {
		return "", httpserver.Forbidden("invalid token: it is not bound to a pod")
	}
	pod, err := e.Kube.CoreV1().Pods(e.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", httpserver.Errorf(http.StatusServiceUnavailable, "get the token's pod: the API server does not return it")
	}
	switch said := singleValue(s.User.Extra[extraNodeName]); {
	case string(pod.UID) != uid:
		return "", httpserver.Forbidden("invalid token: its pod no longer exists")
	case pod.Spec.ServiceAccountName != e.ServiceAccount || pod.Spec.NodeName == "":
		return "", httpserver.Forbidden("invalid token: its pod is not a sensor's pod on a node")
	case said != "" && said != pod.Spec.NodeName:
		return "", httpserver.Forbidden("invalid token: its node is not the node of its pod")
	}
	return pod.Spec.NodeName, nil
}

func singleValue(values authenticationv1.ExtraValue) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

// certificateExpiry returns the end of a certificate; the zero time if it cannot be parsed.
func certificateExpiry(certificate []byte) time.Time {
	block, _ := pem.Decode(certificate)
	if block == nil {
		return time.Time{}
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}
	return c.NotAfter
}
