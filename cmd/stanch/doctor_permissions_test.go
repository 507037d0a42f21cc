package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/permissions"
)

func TestMissingPermissionsFailAndUnneededOnesAreHints(t *testing.T) {
	const fix = "stanch manifests --values-only --config stanch.yaml > stanch-values.yaml && helm upgrade stanch " +
		"deploy/chart --namespace security --values stanch-values.yaml"
	report := permissions.Report{
		Cluster: true, Namespace: "security", Phase: 2, Actions: []string{"pod.isolate", "pod.restart"}, Required: 41,
	}
	require.Equal(t, []checkResult{{
		Name: "permissions", OK: true, Required: true,
		Detail: "the worker has the 41 permissions that its 2 actions need in phase 2",
	}}, checkPermissionReport(report))

	report.Missing = []permissions.Finding{{Permission: "create pods/eviction", Actions: []string{"pod.restart"}}}
	report.Unneeded = []permissions.Finding{{Permission: "patch nodes", Actions: []string{"node.cordon"}}}
	require.Equal(t, []checkResult{
		{
			Name: "permissions", Required: true, Remedy: fix,
			Detail: "the worker lacks permissions that its playbooks need in phase 2: create pods/eviction (pod.restart)",
		},
		{
			Name: "least privilege", Remedy: fix,
			Detail: "the worker has permissions that no playbook needs in phase 2: patch nodes (node.cordon)",
		},
	}, checkPermissionReport(report))

	report.Namespace = "" // `stanch up` has the permissions of a person, who may have more
	got := checkPermissionReport(report)
	require.Len(t, got, 1)
	require.Contains(t, got[0].Remedy, "the user of the kubeconfig")
}
