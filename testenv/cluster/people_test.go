package cluster

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/playbooks"
	"stanch/testenv/kube"
	"stanch/worker/api"
	"stanch/worker/manifests"
)

// createPersonToken makes a service account, which is a person to Stanch or nobody, and a token of it for an audience.
func (in *installation) createPersonToken(t *testing.T, name, audience string) string {
	t.Helper()
	accounts := in.Client().CoreV1().ServiceAccounts(in.namespace)
	_, _ = accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}},
		metav1.CreateOptions{})
	spec := authenticationv1.TokenRequestSpec{}
	if audience != "" {
		spec.Audiences = []string{audience}
	}
	answer, err := accounts.CreateToken(t.Context(), name, &authenticationv1.TokenRequest{Spec: spec},
		metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(in.dir, name+"-"+audience+".token")
	writeFile(t, file, answer.Status.Token)
	return file
}

// In a cluster, people authenticate with a Kubernetes token for Stanch's audience; the API server verifies it.
func TestKubernetesTokenAuthenticatesApprovers(t *testing.T) {
	lab := kube.Shared(t)
	// The namespace of the installation is only known once it is installed: the name of the person is put in later.
	in := install(t, lab, 2, `phase: 2
idle_timeout: 5m
scopes:
  - { name: all, namespaces: ["*"], phase: 2, confidence: 1, approvers: { groups: [oncall], quorum: 1, timeout: 10m } }
people:
  - { name: ann, kubernetes: "system:serviceaccount:NAMESPACE:ann", groups: [oncall] }
  - { name: ben, kubernetes: "system:serviceaccount:NAMESPACE:ben" }
`)
	as := func(file string) []string {
		return []string{
			"--server", fmt.Sprintf("%s:%d", in.NodeIP, manifests.APIPort), "--token-file", file, "--server-ca",
			filepath.Join(in.dir, "secrets", "pki", "ca.crt"),
		}
	}
	ns, p := in.NewNamespace(t), in.newConnectionCounter(t)
	pod := in.RunPod(t, ns, minerPod("asked", p))
	var asked playbooks.Incident
	in.waitForIncident(t, pod, "an open question", func(i playbooks.Incident) error {
		asked = i
		raw, err := in.tryStanch(t.Context(), "incidents", i.ID, "--data", in.data)
		if err == nil && !strings.Contains(string(raw), "APPROVAL:") {
			err = fmt.Errorf("nothing is asked: %s", raw)
		}
		return err
	})
	ann, ben := in.createPersonToken(t, "ann", api.TokenAudience), in.createPersonToken(t, "ben",
		api.TokenAudience)
	notAToken := filepath.Join(in.dir, "invented")
	writeFile(t, notAToken, "eyJhbGciOiJub25lIn0.e30.")
	for name, c := range map[string]struct{ token, want string }{
		"an invented token":                        {notAToken, "invalid token"},
		"a token that was made for the API server": {in.createPersonToken(t, "ann", ""), "not for the audience"},
		"a token for something else":               {in.createPersonToken(t, "ann", "vault"), "not for the audience"},
		"an account that is nobody": {
			in.createPersonToken(t, "eve", api.TokenAudience),
			"unknown Kubernetes user",
		},
		"the worker's own account": {
			in.createPersonToken(t, manifests.WorkerName, api.TokenAudience),
			"unknown Kubernetes user",
		},
		"a person without the right": {ben, "is not allowed to vote on this"},
	} {
		_, err := in.tryStanch(t.Context(), append([]string{"approve", asked.ID}, as(c.token)...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if p.requireSilent(time.Second) == nil {
		t.Fatal("the pod is held without an approval")
	}
	in.runStanch(t, append([]string{"approve", asked.ID}, as(ann)...)...)
	in.waitForIncident(t, pod, "the lease", requireIsolated)
	if err := p.requireSilent(time.Second); err != nil {
		t.Error(err)
	}
	if _, err := in.tryStanch(t.Context(), append([]string{"release", "--all"}, as(ben)...)...); err == nil ||
		!strings.Contains(err.Error(), "is not allowed to change containments") {
		t.Errorf("ben releases: %v", err)
	}
	in.runStanch(t, append([]string{"release", "--all"}, as(ann)...)...)
	in.waitForIncident(t, pod, "the undoing", func(i playbooks.Incident) error {
		for _, l := range i.Leases {
			if !l.Undone {
				return fmt.Errorf("%s is %s", l.Action, l.State)
			}
		}
		return nil
	})
}
