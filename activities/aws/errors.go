package aws

import (
	"errors"
	"fmt"
	"slices"

	"github.com/aws/smithy-go"

	"stanch/activities"
)

// Codes by which services say the same.
var (
	codesDenied = []string{"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError", "UnauthorizedException"}
	codesGone   = []string{"NoSuchEntity", "NoSuchEntityException", "ResourceNotFoundException"}
	codesLimit  = []string{"LimitExceeded"}
	codesFixed  = []string{"UnmodifiableEntity"}
)

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func isGone(err error) bool { return slices.Contains(codesGone, code(err)) }

func isDenied(err error) bool { return slices.Contains(codesDenied, code(err)) }

// fail says what was being done. What Stanch is not allowed to do is a refusal that names the permission, since trying
// again does not help; so is a limit of AWS's.
func fail(err error, permission, doing string) error {
	var api smithy.APIError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &api):
		return fmt.Errorf("%s: %w", doing, err)
	case isDenied(err):
		return activities.Refuse("%s: Stanch lacks the permission %s (%s); `stanch manifests --iam` prints the policy that it needs",
			doing, permission, clip(api.ErrorMessage(), 300))
	case slices.Contains(codesLimit, code(err)):
		return activities.Refuse("%s: a limit of AWS does not allow it: %s", doing, clip(api.ErrorMessage(), 300))
	case slices.Contains(codesFixed, code(err)):
		return activities.Refuse("%s: AWS alone may change it: %s", doing, clip(api.ErrorMessage(), 300))
	}
	return fmt.Errorf("%s: %w", doing, err)
}
