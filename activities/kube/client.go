package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// NewClient returns a client without client-go's default limit of five requests per second.
func NewClient(config *rest.Config) (*kubernetes.Clientset, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create a Kubernetes client: %w", err)
	}
	return client, nil
}

// IsUnavailable reports whether err means that the API server could not be reached, timed out or failed (5xx).
// Everything else is an answer: a 4xx response, or a client-side error about the arguments, which whoever chooses the
// arguments can provoke.
func IsUnavailable(err error) bool {
	if err == nil {
		return false
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Code >= http.StatusInternalServerError
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	if request := (*url.Error)(nil); errors.As(err, &request) {
		return request.Op != "parse" // a URL that cannot be parsed was never requested
	}
	var network net.Error
	return errors.As(err, &network)
}

// IsDefinitiveError reports whether err is the API server's final answer that the object does not exist or the request
// is invalid. Missing permissions and overload are not final, because the cluster can change.
func IsDefinitiveError(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsGone(err) || apierrors.IsBadRequest(err) || apierrors.IsInvalid(err) ||
		apierrors.IsMethodNotSupported(err)
}
