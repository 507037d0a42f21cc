package main

import (
	"context"
	"fmt"
	"strings"

	"stanch/worker/permissions"
)

// checkPermissions compares the permissions of the running worker with those that its playbooks need: it asks the
// worker, because the permissions of whoever runs `stanch doctor` say nothing about it.
func (g *globalFlags) checkPermissions(ctx context.Context) []checkResult {
	var report permissions.Report
	if err := g.newAPIClient().get(ctx, "/v1/permissions", &report); err != nil {
		return []checkResult{{
			Name: "permissions", Detail: "could not be compared: " + err.Error(),
			Remedy: "run a worker of this version",
		}}
	}
	if !report.Cluster {
		return nil
	}
	return checkPermissionReport(report)
}

// checkPermissionReport returns an error for missing permissions, and a hint for those that no playbook needs.
func checkPermissionReport(r permissions.Report) []checkResult {
	remedy := fmt.Sprintf("stanch manifests --values-only --config stanch.yaml > stanch-values.yaml && helm upgrade stanch "+
		"deploy/chart --namespace %s --values stanch-values.yaml", r.Namespace)
	if r.Namespace == "" {
		remedy = "bind the ClusterRole that `stanch manifests --actions-in-use` prints to the user of the kubeconfig"
	}
	required := checkResult{
		Name: "permissions", Required: true, OK: len(r.Missing) == 0, Detail: fmt.Sprintf(
			"the worker has the %d permissions that its %d actions need in phase %d", r.Required, len(r.Actions), r.Phase),
	}
	if !required.OK {
		required.Remedy = remedy
		required.Detail = fmt.Sprintf("the worker lacks permissions that its playbooks need in phase %d: %s", r.Phase,
			formatFindings(r.Missing))
	}
	if r.Namespace == "" || len(r.Unneeded) == 0 {
		return []checkResult{required} // a person's permissions are not those of Stanch
	}
	return []checkResult{required, {
		Name: "least privilege", Remedy: remedy, Detail: fmt.Sprintf(
			"the worker has permissions that no playbook needs in phase %d: %s", r.Phase, formatFindings(r.Unneeded)),
	}}
}

// maxListedFindings is how many permissions a check names.
const maxListedFindings = 12

// formatFindings lists permissions with the actions that they are for.
func formatFindings(all []permissions.Finding) string {
	var out []string
	for i, f := range all {
		if i == maxListedFindings {
			out = append(out, fmt.Sprintf("and %d more", len(all)-i))
			break
		}
		out = append(out, fmt.Sprintf("%s (%s)", f.Permission, strings.Join(f.Actions, ", ")))
	}
	return strings.Join(out, "; ")
}
