package gateway

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
)

// EnrolAudience is whom a sensor's token must be made for. With such a token the API server lets nobody do anything.
const EnrolAudience = "stanch-gateway"

// Enrol gives a node its first certificate. The node proves who it is with its sensor's token, which Kubernetes made for
// one pod on one node: no secret is shared, and who took a node over gets a certificate for that node alone.
type Enrol struct {
	Kube kubernetes.Interface
	// Namespace and Account are those of the sensor's pods.
	Namespace, Account string
	Sign               func(ctx context.Context, node string, csr []byte) ([]byte, error)
	Log                *slog.Logger
	// KeySet is the authority's keys, which the node pins.
	KeySet attestation.KeySet

	addresses limits
	renewals  renewals
}

// EnrolRequest is what a sensor posts; its token is in the header.
type EnrolRequest struct {
	CSR []byte `json:"csr"`
}

// EnrolAnswer is what it gets.
type EnrolAnswer struct {
	Node        string `json:"node"`
	Certificate string `json:"certificate"`
	// Keys are what the node verifies commands with from now on.
	Keys attestation.KeySet `json:"keys"`
}

func (e *Enrol) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := e.enrol(r)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e.Log.Warn("a sensor was not enrolled", "from", hostOf(r.RemoteAddr), "error", err)
		w.WriteHeader(statusOf(err))
		_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
		return
	}
	e.Log.Info("a sensor was enrolled", "node", answer.Node, "from", hostOf(r.RemoteAddr))
	_ = json.NewEncoder(w).Encode(answer)
}

func (e *Enrol) enrol(r *http.Request) (*EnrolAnswer, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > 16<<10 {
		return nil, &problem{http.StatusUnauthorized, "show the sensor's token"}
	}
	if !e.addresses.allow("address:" + hostOf(r.RemoteAddr)) {
		return nil, &problem{http.StatusTooManyRequests, "too many requests; wait a moment"}
	}
	var q EnrolRequest
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 16<<10)).Decode(&q); err != nil {
		return nil, &problem{http.StatusBadRequest, "the request cannot be read: " + err.Error()}
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	node, err := e.node(ctx, token)
	if err != nil {
		return nil, err
	}
	if !e.renewals.allow(node) {
		return nil, &problem{http.StatusTooManyRequests, "this node was given certificates a moment ago"}
	}
	certificate, err := e.Sign(ctx, node, q.CSR)
	if err != nil {
		return nil, &problem{http.StatusBadRequest, err.Error()}
	}
	return &EnrolAnswer{Node: node, Certificate: string(certificate), Keys: e.KeySet}, nil
}

// The extras of a token that is bound to a pod.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// node is the node of the pod that a token was made for, by the API server's word alone.
func (e *Enrol) node(ctx context.Context, token string) (string, error) {
	review, err := e.Kube.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{EnrolAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", &problem{http.StatusServiceUnavailable, "the API server cannot say whose token this is"}
	}
	s := review.Status
	if !s.Authenticated || !slices.Contains(s.Audiences, EnrolAudience) {
		return "", &problem{http.StatusUnauthorized, "the token is not valid for the audience " + EnrolAudience}
	}
	if want := fmt.Sprintf("system:serviceaccount:%s:%s", e.Namespace, e.Account); s.User.Username != want {
		return "", deny("%s is not the sensor's service account", clip(s.User.Username))
	}
	name, uid := only(s.User.Extra[extraPodName]), only(s.User.Extra[extraPodUID])
	if name == "" || uid == "" {
		return "", deny("the token is not bound to a pod")
	}
	pod, err := e.Kube.CoreV1().Pods(e.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", &problem{http.StatusServiceUnavailable, "the API server does not say where the token's pod runs"}
	}
	switch said := only(s.User.Extra[extraNodeName]); {
	case string(pod.UID) != uid:
		return "", deny("the token's pod is gone")
	case pod.Spec.ServiceAccountName != e.Account || pod.Spec.NodeName == "":
		return "", deny("the token's pod is not a sensor's on a node")
	case said != "" && said != pod.Spec.NodeName:
		return "", deny("the token is for another node than that of its pod")
	}
	return pod.Spec.NodeName, nil
}

func only(values authenticationv1.ExtraValue) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

// endOf is when a certificate ends.
func endOf(certificate []byte) time.Time {
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
