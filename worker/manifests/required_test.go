package manifests_test

import (
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"stanch/worker/actions"
	"stanch/worker/guards"
	"stanch/worker/health"
	"stanch/worker/manifests"
	"stanch/worker/permissions"
)

// installedCluster answers access reviews from the roles that the chart creates, as RBAC does.
func installedCluster(t *testing.T, o manifests.Options) *fake.Clientset {
	t.Helper()
	everywhere, byNamespace := []rbacv1.PolicyRule{}, map[string][]rbacv1.PolicyRule{}
	for _, object := range renderObjects(t, o) {
		switch object := object.(type) {
		case *rbacv1.ClusterRole:
			everywhere = append(everywhere, object.Rules...)
		case *rbacv1.Role:
			byNamespace[object.Namespace] = append(byNamespace[object.Namespace], object.Rules...)
		}
	}
	client := fake.NewClientset()
	client.PrependReactor("create", "selfsubjectaccessreviews",
		func(a clienttesting.Action) (bool, runtime.Object, error) {
			review := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
			asked := review.Spec.ResourceAttributes
			resource := strings.TrimSuffix(asked.Resource+"/"+asked.Subresource, "/")
			review.Status.Allowed = slices.ContainsFunc(slices.Concat(everywhere, byNamespace[asked.Namespace]),
				func(r rbacv1.PolicyRule) bool {
					return slices.Contains(r.APIGroups, asked.Group) && slices.Contains(r.Resources, resource) &&
						slices.Contains(r.Verbs, asked.Verb) &&
						(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, asked.Name))
				})
			return true, review, nil
		})
	return client
}

func compareInstalled(t *testing.T, installed manifests.Options, phase int, inUse []string) *permissions.Report {
	t.Helper()
	report, err := permissions.Compare(t.Context(), installedCluster(t, installed), permissions.Scope{
		Catalog: actions.Catalog(), Phase: phase, InUse: inUse, Namespace: "stanch-system",
		StateConfigMaps: []string{guards.KillSwitchConfigMap, guards.UsedGrantsConfigMap, health.NodeRegistryConfigMap},
	})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// listFindings returns "PERMISSION: ACTIONS" for each finding.
func listFindings(all []permissions.Finding) []string {
	var out []string
	for _, f := range all {
		out = append(out, f.Permission+": "+strings.Join(f.Actions, ","))
	}
	return out
}

// The chart grants exactly what the worker compares with, whatever is in use.
func TestInstalledPermissionsAreThoseRequired(t *testing.T) {
	for phase := 1; phase <= 3; phase++ {
		for _, inUse := range [][]string{
			{"log"},
			{"pod.isolate", "process.snapshot"},
			{"node.cordon", "workload", "workload.scale"},
			{"pod.restart", "image", "pod.logs", "pod.manifest"},
		} {
			o := optionsForPhase(phase)
			o.Actions = inUse
			got := compareInstalled(t, o, phase, inUse)
			if len(got.Missing) > 0 || len(got.Unneeded) > 0 {
				t.Errorf("phase %d with %q lacks %q and does not need %q", phase, inUse, listFindings(got.Missing),
					listFindings(got.Unneeded))
			}
			if got.Required < 20 {
				t.Errorf("phase %d with %q requires only %d permissions", phase, inUse, got.Required)
			}
		}
	}
}

func TestOutdatedPermissionsAreReported(t *testing.T) {
	o := optionsForPhase(2)
	o.Actions = []string{"pod.isolate"}
	got := compareInstalled(t, o, 2, []string{"pod.isolate", "pod.restart"})
	if !slices.Contains(listFindings(got.Missing), "create pods/eviction: pod.restart") || len(got.Unneeded) > 0 {
		t.Errorf("after pod.restart came into use: lacks %q, does not need %q", listFindings(got.Missing),
			listFindings(got.Unneeded))
	}

	o.Actions = []string{"pod.isolate", "pod.restart"}
	got = compareInstalled(t, o, 2, []string{"pod.isolate"})
	if !slices.Contains(listFindings(got.Unneeded), "create pods/eviction: pod.restart") || len(got.Missing) > 0 {
		t.Errorf("after pod.restart went out of use: lacks %q, does not need %q", listFindings(got.Missing),
			listFindings(got.Unneeded))
	}

	o = optionsForPhase(3) // the phase was lowered, and the chart was not applied
	got = compareInstalled(t, o, 1, []string{"pod.isolate"})
	if unneeded := listFindings(got.Unneeded); len(got.Missing) > 0 ||
		!slices.Contains(unneeded, "create networkpolicies.networking.k8s.io: pod.isolate") {
		t.Errorf("in phase 1: lacks %q, does not need %q", listFindings(got.Missing), unneeded)
	}
	got = compareInstalled(t, optionsForPhase(1), 3, []string{"workload.scale"})
	if missing := listFindings(got.Missing); !slices.Contains(missing, "update deployments.apps/scale: workload.scale") {
		t.Errorf("in phase 3: lacks %q", missing)
	}
}

// The shared state is permitted by name in one namespace, and nowhere else.
func TestMissingStateOfNamespaceIsReported(t *testing.T) {
	o := optionsForPhase(1)
	o.Namespace = "security"
	got := listFindings(compareInstalled(t, o, 1, []string{"log"}).Missing)
	if want := "patch configmaps stanch-system/" + guards.KillSwitchConfigMap + ": shared state"; !slices.Contains(got,
		want) {
		t.Errorf("lacks %q, want %q", got, want)
	}
}
