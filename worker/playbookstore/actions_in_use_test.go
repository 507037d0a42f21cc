package playbookstore_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/actions"
	"stanch/worker/config"
	"stanch/worker/playbookstore"
)

// branchesPlaybook names actions in every kind of block, and calls another playbook.
const branchesPlaybook = `playbook: branches
description: x
match: { objective: crypto-mining }
steps:
  - parallel:
      - evidence: pod.manifest
      - evidence: pod.logs
  - approval: Scale it?
    id: ask
    from: { groups: [oncall] }
    timeout: 10m
    on_timeout: deny
    steps:
      - contain: workload.scale
        for: 1h
        with: { replicas: 0 }
        on_failure:
          - call: mine
    on_denied:
      - notify: email
        with: { text: x }
  - foreach: incident.targets
    as: item
    max: 3
    steps:
      - enrich: image
        target: item
finally:
  - notify: log
    with: { text: x }
`

func TestActionsInUseAreThoseOfEveryBranch(t *testing.T) {
	off := false
	dir := t.TempDir()
	c := config.Default()
	c.Playbooks, c.Library.Enabled = []string{dir}, &off
	load := func() []string {
		l, problems, err := playbookstore.Open(c, actions.Catalog())
		require.NoError(t, err)
		require.NoError(t, problems.WithoutWarnings().Err())
		return l.ActionsInUse()
	}
	manual := load()
	require.Equal(t, []string{"aws.role.deny-pod", "pod.freeze", "pod.isolate", "process.snapshot"}, manual,
		"without any playbook, people can still request containments")

	writePlaybook(t, dir, "mine.yaml", userPlaybook)
	writePlaybook(t, dir, "branches.yaml", branchesPlaybook)
	require.Equal(t, []string{
		"aws.role.deny-pod", "email", "image", "log", "pod.freeze", "pod.isolate", "pod.logs", "pod.manifest",
		"process.snapshot", "workload.scale",
	}, load())

	c.AWS = &config.AWS{CloudTrail: &config.CloudTrail{UseLookup: true}}
	require.Contains(t, load(), "aws.identity", "CloudTrail's events are attributed to pods")
}

func TestLibraryWithoutDisruptionNeedsNoDisruptiveAction(t *testing.T) {
	c := config.Default()
	c.Library.Only = []string{"cryptominer"}
	l, _, err := playbookstore.Open(c, actions.Catalog())
	require.NoError(t, err)
	require.NotContains(t, l.ActionsInUse(), "node.cordon")
	require.Contains(t, l.ActionsInUse(), "pod.isolate")
}
