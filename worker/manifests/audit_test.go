package manifests_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/foreign"
	"stanch/worker/manifests"
)

// The API server cuts no batch: one that is too large would be refused whole, and who asks for large things often enough
// would make it so.
func TestTheLargestBatchThatAnAPIServerSendsIsTaken(t *testing.T) {
	flag := func(name string) int {
		flags := manifests.AuditFlags("p", "w")
		i := slices.IndexFunc(flags, func(s string) bool { return strings.HasPrefix(s, "--"+name+"=") })
		require.NotEqual(t, -1, i, name)
		n, err := strconv.Atoi(strings.TrimPrefix(flags[i], "--"+name+"="))
		require.NoError(t, err)
		return n
	}
	require.Less(t, flag("audit-webhook-batch-max-size")*(flag("audit-webhook-truncate-max-event-size")+100), foreign.MaxAudit)
	require.GreaterOrEqual(t, flag("audit-webhook-truncate-max-event-size"), 3*256<<10, "annotations alone, asked for and answered, fit")
	require.LessOrEqual(t, 400*100<<10, foreign.MaxAudit, "and so does what it sends untold")
	require.Contains(t, manifests.Audit("https://gw"), "--audit-webhook-truncate-max-event-size=")
}
