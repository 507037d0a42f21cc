package aws

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An undo must not take a policy that it cannot read for one without denies.
func TestUnreadableTrustPolicyIsAnError(t *testing.T) {
	_, _, err := expiredTrustDenies(`{`, time.Now())
	require.Error(t, err)
}
