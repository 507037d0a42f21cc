package simulate

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/worker/config"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// watchWorkflows detects playbooks that start and approval requests that are made.
func (s *simulation) watchWorkflows(cfg *config.Config) {
	s.testEnvironment.SetOnChildWorkflowStartedListener(func(info *workflow.Info, _ workflow.Context,
		args converter.EncodedValues,
	) {
		if info.WorkflowType.Name == "Lease" {
			s.mu.Lock()
			s.leaseWorkflowIDs = append(s.leaseWorkflowIDs, info.WorkflowExecution.ID)
			s.mu.Unlock()
		}
		if info.WorkflowType.Name != "Playbook" {
			return
		}
		var in playbook.Input
		name := info.WorkflowExecution.ID
		if args.Get(&in) == nil {
			if program, _ := s.programCache.loadCached(in, s.options.Catalog); program != nil {
				name = program.Name
				s.runningPrograms[name] = program
			}
		}
		s.mu.Lock()
		s.playbookRunIDs = append(s.playbookRunIDs, info.WorkflowExecution.ID)
		s.result.Playbooks = append(s.result.Playbooks, name)
		s.mu.Unlock()
		s.addEvent("playbook", "playbook %s started", name)
	})
	s.testEnvironment.SetOnActivityStartedListener(func(*activity.Info, context.Context, converter.EncodedValues) {
		s.mu.Lock()
		s.result.ActivityCount++
		s.mu.Unlock()
	})
	s.testEnvironment.SetOnLocalActivityStartedListener(func(*activity.Info, context.Context, []any) {
		s.mu.Lock()
		s.result.ActivityCount++
		s.mu.Unlock()
	})
	// An approval request starts with the timer of its deadline.
	s.testEnvironment.SetOnTimerScheduledListener(func(string, time.Duration) {
		s.testEnvironment.RegisterDelayedCallback(func() { s.answerNewRequests(cfg) }, 0)
	})
}

func (s *simulation) elapsedMS() int64 { return s.testEnvironment.Now().Sub(s.started).Milliseconds() }

func (s *simulation) addEvent(kind, format string, args ...any) {
	at := s.elapsedMS()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Events = append(s.result.Events, TimelineEvent{AtMS: at, Kind: kind, Text: fmt.Sprintf(format, args...)})
}

func (s *simulation) rememberTarget(t playbooks.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targetNames[t.ID()] = t.String()
}

func (s *simulation) targetName(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.targetNames[id], id)
}

// finishResult copies the incident's final state into the result.
func (s *simulation) finishResult(out playbooks.Incident, in incident.Input) {
	s.result.FinalIncident = out
	for _, e := range s.result.Effects {
		if first := s.result.FirstContainmentMS; first == nil || e.AppliedAtMS < *first {
			s.result.FirstContainmentMS = &e.AppliedAtMS
		}
	}
	for _, p := range out.Playbooks {
		for _, step := range p.Steps {
			s.result.Steps = append(s.result.Steps, StepResult{
				Playbook: p.Playbook, RunNumber: playbookRunNumber(p.WorkflowID), Step: step.Step, Action: step.Action,
				Target: step.Target, Outcome: step.Outcome, Reason: step.Reason, AtMS: step.At.Sub(s.started).Milliseconds(),
				Assumed: s.assumedActions[step.Action+"\x00"+step.Target],
			})
		}
		if p.Error != "" {
			s.result.Error = fmt.Sprintf("playbook %s: %s", p.Playbook, p.Error)
		}
	}
	if len(out.Playbooks) == 0 {
		s.result.Events = append(s.result.Events, TimelineEvent{AtMS: 0, Kind: "playbook", Text: "no playbook matches"})
	}
	s.recordRequestWaits()
	s.result.ClosesAtMS = out.Closed.Sub(s.started).Milliseconds()
	s.result.Events = append(s.result.Events, TimelineEvent{
		AtMS: s.result.ClosesAtMS, Kind: "closed",
		Text: fmt.Sprintf("the incident closes: idle for %s, no lease in force", in.IdleTimeout),
	})
}
