package simulate

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks/recording"
	"stanch/worker/config"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
)

// guardConfigAndInput returns the guards' configuration and the incident's input: as given, or as recorded.
func (s *simulation) guardConfigAndInput() (*config.Config, incident.Input) {
	was := s.recording.Incident
	in := incident.Input{
		ID: was.ID, GroupingKey: was.GroupingKey, Cluster: was.Cluster, Scope: was.Scope, Phase: was.Phase, Drill: was.Drill,
		IdleTimeout: time.Duration(was.IdleTimeoutMS) * time.Millisecond,
		LeaseTiming: lease.Timing{VerifyInterval: s.verifyInterval(), Route: workflows.ActivityRoute{LocalOnly: true}},
	}
	namespace := s.recording.Detections[0].Detection.Event.Container.Pod.Namespace
	cfg := s.options.Config
	if cfg == nil {
		cfg = recordedConfig(s.recording, namespace)
	} else {
		own := *cfg
		own.Scopes = slices.Clone(cfg.Scopes)
		cfg = &own
		if !in.Drill {
			scope := cfg.ScopeForNamespace(namespace)
			in.Scope, in.Phase = scope.Name, scope.Phase
		}
	}
	if s.options.Phase > 0 {
		cfg.Phase = s.options.Phase
		for i := range cfg.Scopes {
			cfg.Scopes[i].Phase = s.options.Phase
		}
		scope := cfg.ScopeForNamespace(namespace)
		in.Drill, in.Phase, in.Scope = false, s.options.Phase, scope.Name
	}
	s.result.Phase, s.result.Scope, s.result.Drill, s.result.Workload = in.Phase, in.Scope, in.Drill,
		strings.TrimPrefix(in.GroupingKey, in.Cluster+"/")
	return cfg, in
}

// verifyInterval returns the verification interval of leases: as recorded if a verification ever reported something,
// otherwise a long one, because every result would be the same.
func (s *simulation) verifyInterval() time.Duration {
	for _, a := range s.recording.ActionResults {
		if a.Operation == recording.OperationVerify && (!a.InForce || a.FailureReason != "") {
			return time.Duration(s.recording.Incident.VerifyIntervalMS) * time.Millisecond
		}
	}
	return time.Hour
}

var thresholdReasonPattern = regexp.MustCompile(`^confidence [0-9.]+ is below the ([0-9.]+) that scope `)

// recordedConfig returns a configuration with which the guards decide as recorded.
func recordedConfig(rec recording.Recording, namespace string) *config.Config {
	c := config.Default()
	c.Cluster, c.Phase = rec.Incident.Cluster, rec.Incident.Phase
	name := rec.Incident.Scope
	if rec.Incident.Drill {
		name = "default" // the guards have their own for drills
	}
	scope := config.Scope{Name: name, Namespaces: []string{namespace}, Phase: rec.Incident.Phase, ConfidenceThreshold: 0.8}
	for _, a := range rec.ActionResults {
		if a.GuardDecision != nil && a.GuardDecision.Verdict == string(activities.VerdictAskApproval) {
			scope.Approvers = toConfigApprovers(a.GuardDecision.Approvers)
			break
		}
	}
	applyRecordedConfig(c, &scope, rec)
	// In recordings of earlier versions, only the guards' reasons contain the confidence threshold; a test ensures that
	// they can still be parsed.
	for _, a := range rec.ActionResults {
		if a.GuardDecision == nil || a.GuardDecision.GuardInputs != nil {
			continue
		}
		if m := thresholdReasonPattern.FindStringSubmatch(a.GuardDecision.Reason); m != nil {
			if v, err := strconv.ParseFloat(m[1], 64); err == nil {
				scope.ConfidenceThreshold = v
			}
		}
	}
	if scope.Approvers.Quorum == 0 {
		scope.Approvers.Quorum, scope.Approvers.Timeout = 1, config.Duration(15*time.Minute)
	}
	c.Scopes = []config.Scope{scope}
	for _, v := range rec.Votes {
		if !slices.ContainsFunc(c.People, func(p config.Person) bool { return p.Name == v.Person }) {
			c.People = append(c.People, config.Person{Name: v.Person, Groups: v.Groups})
		}
	}
	return c
}

// applyRecordedConfig applies the recorded part of the configuration.
func applyRecordedConfig(c *config.Config, scope *config.Scope, rec recording.Recording) {
	for i := len(rec.ActionResults) - 1; i >= 0; i-- {
		d := rec.ActionResults[i].GuardDecision
		if d == nil || d.GuardInputs == nil {
			continue
		}
		in := d.GuardInputs
		if !rec.Incident.Drill {
			scope.ConfidenceThreshold = in.ConfidenceThreshold
		}
		if len(in.Approvers.Groups)+len(in.Approvers.Users) > 0 && !rec.Incident.Drill {
			scope.Approvers = toConfigApprovers(in.Approvers)
		}
		c.Budget = config.Budget{
			MaxPerHour: in.MaxPerHour, MaxFraction: in.MaxFraction,
			MaxDuration: config.Duration(time.Duration(in.MaxDurationMS) * time.Millisecond),
		}
		if p := in.ProtectedBy; p != nil {
			c.ProtectedTargets.Namespaces = appendUnique(c.ProtectedTargets.Namespaces, p.Namespace)
			c.ProtectedTargets.Workloads = appendUnique(c.ProtectedTargets.Workloads, p.Workload)
			c.ProtectedTargets.Roles = appendUnique(c.ProtectedTargets.Roles, p.Role)
		}
	}
}

func appendUnique(list []string, one string) []string {
	if one == "" || slices.Contains(list, one) {
		return list
	}
	return append(slices.Clone(list), one)
}

func toConfigApprovers(a recording.Approvers) config.Approvers {
	out := config.Approvers{
		Groups: a.Groups, Users: a.Users, Quorum: a.Quorum,
		Timeout: config.Duration(time.Duration(a.TimeoutMS) * time.Millisecond),
	}
	if e := a.Escalate; e != nil {
		out.Escalate = &config.Escalation{
			After:  config.Duration(time.Duration(e.EscalateAfterMS) * time.Millisecond),
			Groups: e.Groups, Users: e.Users,
		}
	}
	return out
}
