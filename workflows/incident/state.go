package incident

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/truncate"
)

// AttestedDetection is a detection with the gateway's attestation that it accepted it.
type AttestedDetection struct {
	Detection   sensors.Detection    `json:"detection"`
	Attestation attestation.Envelope `json:"attestation"`
}

// Limits of what an incident keeps; it counts everything beyond.
const (
	maxDetectionSummaries    = 50
	maxSeenDetections        = 2000
	maxAttestationsPerTarget = 8
	maxTimeline              = 200
	maxTargets               = 50
	// maxManualRequestSummaries is the maximum number of summaries of manual requests, the newest ones: repeated
	// requests must never displace a detection.
	maxManualRequestSummaries = 10
)

// incidentState is everything that continue-as-new carries over.
type incidentState struct {
	Incident         playbooks.Incident                `json:"incident"`
	SeenDetectionIDs []string                          `json:"seen_detection_ids"` // detection ids, oldest first
	Attestations     map[string][]attestation.Envelope `json:"attestations"`
	// time of the last detection, by the workflow's clock
	LastDetectionAt time.Time `json:"last"`
	// CoveredTargets are the targets for which a playbook runs or ran, by playbook and target.
	CoveredTargets map[string]bool `json:"covered_targets"`
	RunCount       int             `json:"run_count"`
	// StartedVersions are the playbooks in the version that was started first: a later edit does not change them.
	StartedVersions map[string]SelectedPlaybook `json:"started_versions,omitempty"`
	// ContainingRuns is the run that contains a target for an objective. RefusedTargets are those whose run ended
	// without containment, by playbook and target.
	ContainingRuns map[string]containingRun `json:"containing_runs,omitempty"`
	RefusedTargets map[string]bool          `json:"refused_targets,omitempty"`
	// ChatMessageStarted means that the message workflow was started.
	ChatMessageStarted bool `json:"chat_message_started,omitempty"`
	// WatcherWorkflowIDs are the playbook runs that wait for a change of the incident.
	WatcherWorkflowIDs []string `json:"watcher_workflow_ids,omitempty"`
	// WatcherNotifications is the number of notifications sent to them.
	WatcherNotifications int `json:"watcher_notifications,omitempty"`
}

// TargetOfDetection returns the target of a detection: its pod, or its container outside Kubernetes.
func TargetOfDetection(d sensors.Detection) playbooks.Target {
	c := d.Event.Container
	if c.Pod.UID != "" {
		return playbooks.Target{
			Kind: playbooks.TargetPod, Namespace: c.Pod.Namespace, Name: c.Pod.Name, UID: c.Pod.UID, Node: d.Node,
			ContainerID: c.ID, ContainerName: c.Name, ServiceAccount: c.Pod.ServiceAccount, HostNetwork: c.Pod.HostNetwork,
		}
	}
	name := c.Name
	if name == "" {
		name = shortID(c.ID)
	}
	return playbooks.Target{
		Kind: playbooks.TargetContainer, Name: name, UID: c.ID, Node: d.Node, ContainerID: c.ID,
		ContainerName: c.Name,
	}
}

// HasContainer reports whether a detection is about a container, and so has a target that can be contained.
func HasContainer(d sensors.Detection) bool {
	return d.Event.Container.ID != "" || d.Event.Container.Pod.UID != ""
}

func shortID(id string) string { return id[:min(12, len(id))] }

// WorkloadOfDetection returns the workload of a detection's container.
func WorkloadOfDetection(d sensors.Detection) playbooks.WorkloadIdentity {
	c := d.Event.Container
	w := playbooks.WorkloadIdentity{
		Namespace: c.Pod.Namespace, Kind: c.Workload.Kind, Name: c.Workload.Name, Image: c.Image, ImageDigest: c.ImageDigest,
		ServiceAccount: c.Pod.ServiceAccount, Node: d.Node, Labels: c.Pod.Labels,
	}
	switch about := d.Event.Subject; {
	case w.Kind != "" && w.Name != "":
	case !HasContainer(d) && about.Kind != "":
		w.Namespace, w.Kind, w.Name = about.Namespace, about.Kind, about.Name
	case c.Pod.Name != "":
		w.Kind, w.Name = "Pod", c.Pod.Name
	default:
		w.Kind, w.Name = "Container", TargetOfDetection(d).Name
	}
	return w
}

// addDetection adds a detection. It returns false for a duplicate.
func (s *incidentState) addDetection(a AttestedDetection, now time.Time) bool {
	d := a.Detection
	if slices.Contains(s.SeenDetectionIDs, d.ID) {
		return false
	}
	s.addActor(d)
	if s.SeenDetectionIDs = append(s.SeenDetectionIDs, d.ID); len(s.SeenDetectionIDs) > maxSeenDetections {
		s.SeenDetectionIDs = s.SeenDetectionIDs[len(s.SeenDetectionIDs)-maxSeenDetections:]
	}
	in := &s.Incident
	target := playbooks.Target{}
	if HasContainer(d) {
		target = TargetOfDetection(d)
	}
	count := max(d.Count, 1)
	in.TotalDetections += count
	in.Updated, s.LastDetectionAt = now, now
	if in.Trigger.ID == "" {
		in.Trigger, in.Workload = d, WorkloadOfDetection(d)
	}
	if i := slices.IndexFunc(in.Targets, func(t playbooks.Target) bool { return t.ID() == target.ID() }); i < 0 &&
		target.Kind != "" && len(in.Targets) < maxTargets {
		in.Targets = append(in.Targets, target)
	}
	if target.Kind != "" && d.ManualRequest == nil { // a request's attestation is for its own run only
		s.addAttestation(target.ID(), a.Attestation)
	}
	if d.ManualRequest != nil {
		s.trimManualRequests(maxManualRequestSummaries - 1)
	}
	if i := slices.IndexFunc(in.Detections, func(x playbooks.DetectionSummary) bool {
		return x.Rule == d.Rule && x.Target == target.ID() && d.ManualRequest == nil
	}); i >= 0 {
		in.Detections[i].Count += count
		in.Detections[i].LastSeen = d.Time
	} else if len(in.Detections) < maxDetectionSummaries {
		in.Detections = append(in.Detections, playbooks.DetectionSummary{
			ID: d.ID, Rule: d.Rule, Title: d.Title, Severity: d.Severity, Confidence: d.Confidence, Objective: d.Objective,
			Technique: d.Technique,
			Source:    d.Source, Target: target.ID(), Description: Describe(d), Reasons: d.Reasons, FirstSeen: d.Time,
			LastSeen: d.Time, Count: count,
		})
		if target.Kind == "" {
			s.addTimeline(d.Time, fmt.Sprintf("%s: %s", d.Title, Describe(d)))
		} else {
			s.addTimeline(d.Time, fmt.Sprintf("%s on %s: %s", d.Title, target, Describe(d)))
		}
	}
	return true
}

// trimManualRequests keeps only the newest summaries of requests. The timeline and the runs keep all.
func (s *incidentState) trimManualRequests(keep int) {
	requests := 0
	for _, d := range s.Incident.Detections {
		if d.Rule == sensors.RuleManualRequest {
			requests++
		}
	}
	s.Incident.Detections = slices.DeleteFunc(s.Incident.Detections, func(d playbooks.DetectionSummary) bool {
		forget := d.Rule == sensors.RuleManualRequest && requests > keep
		if forget {
			requests--
		}
		return forget
	})
}

// addAttestation adds an attestation of a target, and keeps only the newest ones.
func (s *incidentState) addAttestation(target string, a attestation.Envelope) {
	list := append(s.Attestations[target], a)
	if len(list) > maxAttestationsPerTarget {
		list = list[len(list)-maxAttestationsPerTarget:]
	}
	s.Attestations[target] = list
}

// addTimeline inserts a line into the timeline by its time, because reports arrive later than what they report.
func (s *incidentState) addTimeline(at time.Time, what string) {
	t := s.Incident.Timeline
	if len(t) >= maxTimeline {
		return
	}
	i := len(t)
	for i > 0 && t[i-1].At.After(at) {
		i--
	}
	s.Incident.Timeline = slices.Insert(t, i, playbooks.TimelineEntry{At: at, Text: what})
}

// Describe returns a detection's behavior in one line. It may contain attacker-controlled strings.
func Describe(d sensors.Detection) string {
	if d.ManualRequest != nil && len(d.Reasons) > 0 {
		return d.Reasons[0] // the gateway created and limited it: a person's reason is shown completely
	}
	e := d.Event
	process := e.Process.Exe
	if process == "" {
		process = e.Process.Name
	}
	var what string
	switch e.Kind {
	case sensors.KindConnect:
		what = fmt.Sprintf("%s connected to %s port %d", process, e.Network.Address, e.Network.Port)
	case sensors.KindFileOpen:
		what = fmt.Sprintf("%s opened %s", process, e.File.Path)
	case sensors.KindFileDelete:
		what = fmt.Sprintf("%s deleted or truncated %s", process, e.File.Path)
	case sensors.KindChmod:
		what = fmt.Sprintf("%s granted permissions on %s", process, e.File.Path)
	case sensors.KindUnixConnect:
		what = fmt.Sprintf("%s connected to the socket %s", process, e.File.Path)
	case sensors.KindListen:
		what = fmt.Sprintf("%s listens on port %d", process, e.Network.Port)
	case sensors.KindDNS:
		what = fmt.Sprintf("%s queried the name %s", process, e.Network.Domain)
	case sensors.KindProcessBurst:
		what = fmt.Sprintf("%s and others: %d new processes within seconds", process, e.Count)
	case sensors.KindMount, sensors.KindNamespaceChange, sensors.KindProcessTrace, sensors.KindRawSocket, sensors.KindBPF,
		sensors.KindIOUring, sensors.KindKernelModule:
		what = describeSyscall(process, e)
	case sensors.KindKubernetesAudit, sensors.KindCloudAPICall, sensors.KindSensorHealth:
		if what = d.Title; len(d.Reasons) > 0 {
			what = d.Reasons[0]
		}
	default:
		what = fmt.Sprintf("%s ran as %q", process, strings.Join(e.Process.Args, " "))
	}
	if len(e.Process.Ancestors) > 0 {
		what += " under " + e.Process.Ancestors[0].Name
	}
	return truncate.Text(what, 200)
}

// describeSyscall describes a system call, its object, and whether the kernel refused it.
func describeSyscall(process string, e sensors.Event) string {
	what := process + " called " + e.Syscall.Name
	if e.Syscall.PID != 0 {
		what += fmt.Sprintf(" on process %d", e.Syscall.PID)
	}
	if e.File.Path != "" {
		what += " on " + e.File.Path
	}
	if e.Syscall.Detail != "" {
		what += " (" + e.Syscall.Detail + ")"
	}
	if e.Syscall.Failed {
		what += "; the kernel denied it"
	}
	return what
}

// recompute correlates the detections and updates the summary.
func (s *incidentState) recompute() {
	in := &s.Incident
	signals := make([]playbooks.CorrelationInput, 0, len(in.Detections))
	techniques := map[string]bool{}
	in.Techniques = nil
	detected := !s.isManualOnly()
	for _, d := range in.Detections {
		if detected && d.Rule == sensors.RuleManualRequest {
			continue // a manual request says nothing about the attacker's objective
		}
		signals = append(signals, playbooks.CorrelationInput{
			Rule: d.Rule, Objective: d.Objective, Confidence: d.Confidence,
			Severity: d.Severity, Title: d.Title, DetectedAt: d.FirstSeen, Reason: firstReason(d.Reasons),
		})
		if d.Technique != "" && !techniques[d.Technique] {
			techniques[d.Technique] = true
			in.Techniques = append(in.Techniques, d.Technique)
		}
	}
	v := playbooks.Correlate(signals)
	in.Objective, in.Severity, in.Confidence = v.Objective, v.Severity, v.Confidence
	in.Reasons = v.Reasons
	for _, c := range in.Changes {
		in.Reasons = append(in.Reasons, "changed recently: "+c.Description)
	}
	in.Summary = Summarize(*in)
}

// firstReason returns the first reason of a detection: its rule's reason, or what happened if the gateway or the
// telemetry's health put that first, such as who requested what from the cluster or the cloud.
func firstReason(reasons []string) string {
	if len(reasons) == 0 {
		return ""
	}
	return truncate.Reason(reasons[0])
}

// Summarize returns a summary of an incident in plain language.
func Summarize(in playbooks.Incident) string {
	var b strings.Builder
	worst, at := display.HeadlineDetection(in)
	if at < 0 {
		worst = playbooks.DetectionSummary{Title: in.Trigger.Title, Description: Describe(in.Trigger)}
	}
	fmt.Fprintf(&b, "%s in %s: %s.", worst.Title, in.Workload, worst.Description)
	if at > 0 {
		fmt.Fprintf(&b, " First detection: %s.", in.Detections[0].Title)
	}
	if n := len(in.Detections) - 1 - min(max(at, 0), 1); n > 0 {
		fmt.Fprintf(&b, " %s more.", describeKindCount(n))
	}
	if in.Objective != sensors.ObjectiveManualRequest {
		fmt.Fprintf(&b, " It looks like %s (confidence %.2f).", in.Objective, in.Confidence)
	}
	if len(in.Targets) > 1 {
		fmt.Fprintf(&b, " %d pods are affected.", len(in.Targets))
	}
	if in.BlastRadius.SameDigestPodCount > 0 {
		fmt.Fprintf(&b, " The same image runs in %d other pods.", in.BlastRadius.SameDigestPodCount)
	}
	if len(in.BlastRadius.DangerousPermissions) > 0 {
		fmt.Fprintf(&b, " Dangerous permissions of its service account: %s.",
			strings.Join(in.BlastRadius.DangerousPermissions, ", "))
	}
	if len(in.Changes) > 0 {
		fmt.Fprintf(&b, " Changed recently: %s.", in.Changes[0].Description)
	}
	return b.String()
}

func describeKindCount(n int) string {
	if n == 1 {
		return "1 kind of detection"
	}
	return fmt.Sprintf("%d kinds of detection", n)
}

// incidentRef returns the part of the incident that actions use.
func (s *incidentState) incidentRef() activities.IncidentRef {
	in := s.Incident
	return activities.IncidentRef{
		ID: in.ID, GroupingKey: in.GroupingKey, Cluster: in.Cluster, Summary: in.Summary,
		Scope: in.Scope, Workload: in.Workload, Confidence: in.Confidence, Opened: in.Opened,
		Replicas: in.BlastRadius.Replicas,
	}
}
