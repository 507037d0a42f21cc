package manifests_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/integrations"
	"stanch/worker/manifests"
)

// The API server does not truncate batches: a batch above the limit would be refused completely, and an attacker could
// cause that with large requests.
func TestLargestAuditBatchFitsLimit(t *testing.T) {
	flag := func(name string) int {
		flags := manifests.APIServerAuditFlags("p", "w")
		i := slices.IndexFunc(flags, func(s string) bool { return strings.HasPrefix(s, "--"+name+"=") })
		require.NotEqual(t, -1, i, name)
		n, err := strconv.Atoi(strings.TrimPrefix(flags[i], "--"+name+"="))
		require.NoError(t, err)
		return n
	}
	require.Less(t, flag("audit-webhook-batch-max-size")*(flag("audit-webhook-truncate-max-event-size")+100),
		integrations.MaxAuditBytes)
	require.GreaterOrEqual(t, flag("audit-webhook-truncate-max-event-size"), 3*256<<10,
		"request, response and annotations fit")
	require.LessOrEqual(t, 400*100<<10, integrations.MaxAuditBytes, "the default batch fits too")
	require.Contains(t, manifests.AuditInstructions("https://gw"), "--audit-webhook-truncate-max-event-size=")
}

// auditLevelFor returns the level of a request by the policy's rules, in order.
func auditLevelFor(t *testing.T, user, group, verb, apiGroup, resource string) string {
	t.Helper()
	var policy struct {
		Rules []struct {
			Level           string   `yaml:"level"`
			Verbs           []string `yaml:"verbs"`
			Users           []string `yaml:"users"`
			UserGroups      []string `yaml:"userGroups"`
			NonResourceURLs []string `yaml:"nonResourceURLs"`
			Resources       []struct {
				Group     string   `yaml:"group"`
				Resources []string `yaml:"resources"`
			} `yaml:"resources"`
		} `yaml:"rules"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(manifests.AuditPolicy), &policy))
	has := func(all []string, one string) bool { return len(all) == 0 || slices.Contains(all, one) }
	for _, r := range policy.Rules {
		matches := len(r.Resources) == 0
		for _, g := range r.Resources {
			matches = matches || g.Group == apiGroup && (slices.Contains(g.Resources, resource) ||
				slices.Contains(g.Resources, "*"))
		}
		if matches && len(r.NonResourceURLs) == 0 && has(r.Verbs, verb) && has(r.Users, user) && has(r.UserGroups, group) {
			return r.Level
		}
	}
	return "None"
}

func TestAuditPolicyLogsEverythingThatRulesNeed(t *testing.T) {
	const accounts = "system:serviceaccounts:kube-system"
	for _, user := range []struct{ name, group string }{
		{"alice", "people"},
		{"system:serviceaccount:kube-system:cilium", accounts},
		{"system:serviceaccount:kube-system:job-controller", accounts},
		{"system:node:n1", "system:nodes"},
		{"system:kube-controller-manager", ""},
	} {
		for _, entered := range []string{"pods/exec", "pods/attach", "pods/portforward", "nodes/proxy", "secrets"} {
			require.Equal(t, "Metadata", auditLevelFor(t, user.name, user.group, "get", "", entered), "%s %s", user.name,
				entered)
		}
		require.Equal(t, "RequestResponse", auditLevelFor(t, user.name, user.group, "create", "", "pods"))
		require.Equal(t, "RequestResponse", auditLevelFor(t, user.name, user.group, "patch", "rbac.authorization.k8s.io",
			"clusterroles"))
	}
	require.Equal(t, "Metadata", auditLevelFor(t, "system:serviceaccount:kube-system:cilium", accounts, "list", "",
		"pods"), "reads with a stolen token are logged")
	require.Equal(t, "None", auditLevelFor(t, "system:serviceaccount:kube-system:job-controller", accounts, "list", "",
		"pods"))
	require.Equal(t, "None", auditLevelFor(t, "system:node:n1", "system:nodes", "watch", "", "pods"))
}
