package main

import (
	"fmt"
	"strings"

	"stanch/playbooks"
)

// checkCloudSteps checks the outcomes of the AWS steps. Without an account, or for a pod without a role, steps may be
// refused or skipped; they may not fail or be denied.
func (d *drillRun) checkCloudSteps(in playbooks.Incident) {
	ok, outcomes := true, []string{}
	for _, run := range in.Playbooks {
		for _, s := range run.Steps {
			if !strings.HasPrefix(s.Action, "aws.") || s.Outcome == playbooks.OutcomeSkipped {
				continue
			}
			ok = ok && s.Outcome != playbooks.OutcomeFailed && s.Outcome != playbooks.OutcomeDenied
			outcomes = append(outcomes, strings.TrimSuffix(fmt.Sprintf("%s %s: %s", s.Action, s.Outcome, s.Reason),
				": "))
		}
	}
	d.recordCheck("cloud-steps", ok && len(outcomes) > 0, "%s", strings.Join(outcomes, "; "))
}
