package aws

import (
	"errors"
	"fmt"
	"slices"

	"github.com/aws/smithy-go"

	"stanch/activities"
)

// Equivalent error codes of several services.
var (
	accessDeniedCodes = []string{
		"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError",
		"UnauthorizedException",
	}
	notFoundCodes      = []string{"NoSuchEntity", "NoSuchEntityException", "ResourceNotFoundException"}
	limitExceededCodes = []string{"LimitExceeded"}
	unmodifiableCodes  = []string{"UnmodifiableEntity"}
)

func errorCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func isNotFound(err error) bool { return slices.Contains(notFoundCodes, errorCode(err)) }

func isAccessDenied(err error) bool { return slices.Contains(accessDeniedCodes, errorCode(err)) }

// wrapError adds what was being done. A missing permission becomes a refusal that names it, because retrying does not
// help; an exceeded AWS quota is a refusal too.
func wrapError(err error, permission, doing string) error {
	var api smithy.APIError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &api):
		return fmt.Errorf("%s: %w", doing, err)
	case isAccessDenied(err):
		return activities.Refusef(
			"%s: Stanch lacks the permission %s (%s); `stanch manifests --iam` prints the required policy",
			doing,
			permission,
			plainText(api.ErrorMessage(), 300),
		)
	case slices.Contains(limitExceededCodes, errorCode(err)):
		return activities.Refusef("%s: an AWS quota is exceeded: %s", doing, plainText(api.ErrorMessage(), 300))
	case slices.Contains(unmodifiableCodes, errorCode(err)):
		return activities.Refusef("%s: only AWS can change it: %s", doing, plainText(api.ErrorMessage(), 300))
	}
	return fmt.Errorf("%s: %w", doing, err)
}
