package export

import (
	"cmp"
	"strconv"
	"strings"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
)

// OCSFVersion is the version of the schema that events declare (schema.ocsf.io).
const OCSFVersion = "1.5.0"

// ocsfObject is a JSON object. Unknown fields are omitted, as the schema requires.
type ocsfObject map[string]any

func (o ocsfObject) setIfKnown(name string, v any) {
	switch v := v.(type) {
	case string:
		if v == "" {
			return
		}
	case ocsfObject:
		if len(v) == 0 {
			return
		}
	case []ocsfObject:
		if len(v) == 0 {
			return
		}
	}
	o[name] = v
}

var ocsfSeverities = map[sensors.Severity]int{
	sensors.SeverityInfo: 1, sensors.SeverityLow: 2, sensors.SeverityMedium: 3, sensors.SeverityHigh: 4,
	sensors.SeverityCritical: 5,
}

func ocsfMetadata(uid, version string) ocsfObject {
	return ocsfObject{
		"version": OCSFVersion, "uid": uid, "product": ocsfObject{
			"name": "Stanch", "vendor_name": "Stanch",
			"version": cmp.Or(version, "dev"),
		},
	}
}

func ocsfAttacks(objective sensors.Objective, techniques ...string) []ocsfObject {
	var out []ocsfObject
	for _, technique := range techniques {
		a := ocsfObject{}
		if technique != "" {
			a["technique"] = ocsfObject{"uid": technique}
		}
		if t, ok := sensors.ATTACKTacticOf(objective, technique); ok {
			a["tactic"] = ocsfObject{"uid": t.ID, "name": t.Name}
		}
		if len(a) > 0 {
			out = append(out, a)
		}
	}
	return out
}

// incidentAttacks returns the techniques of an incident, each with the tactic of its detection: an incident has one
// objective, and its steps have others.
func incidentAttacks(in playbooks.Incident) []ocsfObject {
	var out []ocsfObject
	seen := map[[2]string]bool{}
	for _, d := range in.Detections {
		key := [2]string{string(d.Objective), d.Technique}
		if d.Technique != "" && !seen[key] {
			out = append(out, ocsfAttacks(d.Objective, d.Technique)...)
		}
		seen[key] = true
	}
	if len(out) == 0 {
		return ocsfAttacks(in.Objective, in.Techniques...)
	}
	return out
}

// ocsfConfidence returns the schema's confidence level, and its score from 0 to 100.
func ocsfConfidence(of float64) (id, score int) {
	switch {
	case of >= 0.8:
		id = 3
	case of >= 0.5:
		id = 2
	default:
		id = 1
	}
	return id, int(of*100 + 0.5)
}

// OCSFDetectionFinding returns a detection as an OCSF Detection Finding (class 2004).
func OCSFDetectionFinding(d sensors.Detection, version string) any {
	level, score := ocsfConfidence(d.Confidence)
	o := ocsfObject{
		"class_uid": 2004, "class_name": "Detection Finding", "category_uid": 2, "category_name": "Findings",
		"activity_id": 1, "activity_name": "Create",
		"type_uid": 200401, "time": d.Time.UnixMilli(), "severity_id": ocsfSeverities[d.Severity],
		"severity": string(d.Severity), "status_id": 1, "is_alert": true,
		"confidence_id": level, "confidence_score": score, "metadata": ocsfMetadata(d.ID, version),
	}
	info := ocsfObject{"uid": d.ID, "title": d.Title, "analytic": ocsfObject{
		"uid": d.Rule, "name": d.Title, "type_id": 1,
		"type": "Rule",
	}}
	info.setIfKnown("desc", strings.Join(d.Reasons, " "))
	info.setIfKnown("attacks", ocsfAttacks(d.Objective, d.Technique))
	info.setIfKnown("created_time", d.Time.UnixMilli())
	info["data_sources"] = []string{d.Source}
	o["finding_info"] = info
	o.setIfKnown("message", d.Title)
	if d.Count > 1 {
		o["count"] = d.Count
	}
	o.setIfKnown("evidences", ocsfEvidences(d.Event))
	o.setIfKnown("resources", ocsfResources(d))
	if d.Node != "" {
		o["device"] = ocsfObject{"hostname": d.Node, "name": d.Node, "type_id": 1}
	}
	return o
}

func ocsfEvidences(e sensors.Event) []ocsfObject {
	ev := ocsfObject{}
	p := ocsfObject{}
	if e.Process.PID != 0 {
		p["pid"] = e.Process.PID
	}
	p.setIfKnown("name", cmp.Or(e.Process.Name, e.Process.ExeName()))
	if e.Process.Exe != "" {
		p["file"] = ocsfObject{"name": e.Process.ExeName(), "path": e.Process.Exe, "type_id": 1}
	}
	p.setIfKnown("cmd_line", strings.Join(e.Process.Args, " "))
	if len(p) > 0 {
		p["user"] = ocsfObject{"uid": strconv.FormatUint(uint64(e.Process.UID), 10)}
		if len(e.Process.Ancestors) > 0 {
			a := e.Process.Ancestors[0]
			parent := ocsfObject{"pid": a.PID}
			parent.setIfKnown("name", a.ExeName())
			parent.setIfKnown("cmd_line", strings.Join(a.Args, " "))
			p["parent_process"] = parent
		}
		ev["process"] = p
	}
	if e.File.Path != "" {
		ev["file"] = ocsfObject{
			"path": e.File.Path, "name": e.File.Path[strings.LastIndexByte(e.File.Path, '/')+1:],
			"type_id": 1,
		}
	}
	if e.Network.Address != "" {
		ev["dst_endpoint"] = ocsfObject{"ip": e.Network.Address, "port": int(e.Network.Port)}
	}
	if e.Network.Domain != "" {
		ev["query"] = ocsfObject{"hostname": e.Network.Domain}
	}
	if e.Syscall.Name != "" {
		ev["api"] = ocsfObject{"operation": e.Syscall.Name}
	}
	if e.Actor != "" {
		ev["actor"] = ocsfObject{"user": ocsfObject{"name": e.Actor}}
	}
	c := ocsfObject{}
	c.setIfKnown("uid", e.Container.ID)
	c.setIfKnown("name", e.Container.Name)
	c.setIfKnown("runtime", e.Container.Runtime)
	image := ocsfObject{}
	image.setIfKnown("name", e.Container.Image)
	image.setIfKnown("uid", e.Container.ImageDigest)
	c.setIfKnown("image", image)
	c.setIfKnown("pod_uuid", e.Container.Pod.UID)
	ev.setIfKnown("container", c)
	if len(ev) == 0 {
		return nil
	}
	return []ocsfObject{ev}
}

func ocsfResources(d sensors.Detection) []ocsfObject {
	c := d.Event.Container
	var out []ocsfObject
	if c.Pod.UID != "" {
		r := ocsfObject{"type": "Pod", "uid": c.Pod.UID}
		r.setIfKnown("name", c.Pod.Name)
		r.setIfKnown("namespace", c.Pod.Namespace)
		out = append(out, r)
	}
	if c.Workload.Name != "" {
		r := ocsfObject{"type": c.Workload.Kind, "name": c.Workload.Name}
		r.setIfKnown("namespace", c.Pod.Namespace)
		out = append(out, r)
	}
	if s := d.Event.Subject; s.Kind != "" {
		r := ocsfObject{"type": s.Kind, "name": s.Name}
		r.setIfKnown("namespace", s.Namespace)
		out = append(out, r)
	}
	return out
}

// OCSFIncident returns an incident as OCSF: a Detection Finding (2004) for the incident, and a Remediation Activity
// (7003) for each containment.
func OCSFIncident(in playbooks.Incident, version string) []any {
	level, score := ocsfConfidence(in.Confidence)
	activity, status := 2, 2 // update, in progress
	if !in.Closed.IsZero() {
		activity, status = 3, 4 // close, resolved
	}
	o := ocsfObject{
		"class_uid": 2004, "class_name": "Detection Finding", "category_uid": 2, "category_name": "Findings",
		"activity_id": activity, "type_uid": 200400 + activity,
		"time": in.Updated.UnixMilli(), "start_time": in.Opened.UnixMilli(), "severity_id": ocsfSeverities[in.Severity],
		"severity": string(in.Severity), "status_id": status,
		"is_alert": true, "confidence_id": level, "confidence_score": score, "confidence": strings.Join(in.Reasons, " "),
		"message": in.Summary, "metadata": ocsfMetadata(in.ID, version),
	}
	info := ocsfObject{
		"uid": in.ID, "title": cmp.Or(incidentTitle(in), in.ID), "desc": in.Summary,
		"first_seen_time": in.Opened.UnixMilli(), "last_seen_time": in.Updated.UnixMilli(),
	}
	info.setIfKnown("attacks", incidentAttacks(in))
	var related []ocsfObject
	for _, d := range in.Detections {
		related = append(related, ocsfObject{
			"uid": d.ID, "type": d.Rule, "title": d.Title, "count": max(d.Count, 1),
			"first_seen_time": d.FirstSeen.UnixMilli(), "last_seen_time": d.LastSeen.UnixMilli(),
		})
	}
	info.setIfKnown("related_events", related)
	o["finding_info"] = info
	w := ocsfObject{"type": in.Workload.Kind, "name": in.Workload.Name}
	w.setIfKnown("namespace", in.Workload.Namespace)
	o["resources"] = []ocsfObject{w}
	o.setIfKnown("evidences", ocsfEvidences(in.Trigger.Event))
	out := []any{o}
	for _, l := range in.Leases {
		out = append(out, leaseRemediationActivity(in, l, version))
	}
	return out
}

// ocsfRemediations maps an action's facet to the schema: isolate, evict, restore, harden.
var ocsfRemediations = map[string]struct {
	id   int
	name string
}{
	"network": {1, "Isolate"}, "execution": {2, "Evict"}, "replicas": {2, "Evict"}, "identity": {4, "Harden"},
	"scheduling": {4, "Harden"}, "image": {4, "Harden"},
}

// leaseRemediationActivity returns the remediation activity of a lease.
func leaseRemediationActivity(in playbooks.Incident, l playbooks.LeaseReport, version string) ocsfObject {
	does, ok := ocsfRemediations[l.Facet]
	if !ok {
		does.id, does.name = 99, "Other"
	}
	status, name := 0, "Unknown"
	switch l.Outcome {
	case playbooks.OutcomeSucceeded, playbooks.OutcomeChanged, playbooks.OutcomeUnchanged:
		status, name = 1, "Success"
	case playbooks.OutcomeUnverified:
		status, name = 4, "Partial"
	case playbooks.OutcomeFailed:
		status, name = 6, "Error"
	case playbooks.OutcomeRefused, playbooks.OutcomeDenied, playbooks.OutcomeProposed, playbooks.OutcomeSkipped:
		status, name = 2, "Failure"
	}
	o := ocsfObject{
		"class_uid": 7003, "class_name": "Remediation Activity", "category_uid": 7, "category_name": "Remediation",
		"activity_id": does.id, "activity_name": does.name,
		"type_uid": 700300 + does.id, "time": l.At.UnixMilli(), "severity_id": ocsfSeverities[in.Severity],
		"severity": string(in.Severity), "status_id": status, "status": name,
		"command_uid": l.ID, "metadata": ocsfMetadata(in.ID+"/"+l.ID, version), "message": l.Action + " of " + l.Target +
			" is " + l.State,
		"finding_info": ocsfObject{"uid": in.ID, "title": cmp.Or(incidentTitle(in), in.ID)},
		"unmapped":     ocsfObject{"state": l.State, "until": l.ExpiresAt, "verified": l.Verified, "undone": l.Undone},
	}
	o.setIfKnown("status_detail", l.Reason)
	return o
}

// incidentTitle returns the title of the worst detection, for queues that people read.
func incidentTitle(in playbooks.Incident) string {
	worst, at := display.HeadlineDetection(in)
	if at < 0 {
		return in.Trigger.Title
	}
	return worst.Title
}
