package main

import (
	"fmt"
	"strings"

	"stanch/playbooks"
)

// checkCloudSteps tells what became of the steps in the cloud. Without an account, or for a pod without a role, they are refused or
// skipped with the reason, and that is as it should be; a failure is not.
func (d *drillRun) checkCloudSteps(in playbooks.Incident) {
	ok, said := true, []string{}
	for _, run := range in.Playbooks {
		for _, s := range run.Steps {
			if !strings.HasPrefix(s.Action, "aws.") || s.Outcome == playbooks.OutcomeSkipped {
				continue
			}
			ok = ok && s.Outcome != playbooks.OutcomeFailed && s.Outcome != playbooks.OutcomeDenied
			said = append(said, strings.TrimSuffix(fmt.Sprintf("%s %s: %s", s.Action, s.Outcome, s.Reason), ": "))
		}
	}
	d.recordCheck("cloud-steps", ok && len(said) > 0, "%s", strings.Join(said, "; "))
}
