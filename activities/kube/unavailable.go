package kube

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// IsUnavailable reports whether err means that the API server could not be reached, did not answer in time or failed
// itself (5xx). Everything else is an answer: a refusal (4xx), or an error of the client's own about its arguments, which
// whoever chooses the arguments can provoke.
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

// IsDefinitiveError reports whether err is the API server's final answer that there is no such object, or that the request is
// invalid. It is not a refusal for lack of rights or of capacity, which a change on the server's side ends.
func IsDefinitiveError(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsGone(err) || apierrors.IsBadRequest(err) || apierrors.IsInvalid(err) || apierrors.IsMethodNotSupported(err)
}
