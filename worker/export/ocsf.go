package export

import (
	"cmp"
	"strconv"
	"strings"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
)

// OCSFVersion is the schema's version that events say they follow (schema.ocsf.io).
const OCSFVersion = "1.5.0"

// object is a JSON object. Fields that are not known are left out, as the schema wants.
type object map[string]any

func (o object) set(name string, v any) {
	switch v := v.(type) {
	case string:
		if v == "" {
			return
		}
	case object:
		if len(v) == 0 {
			return
		}
	case []object:
		if len(v) == 0 {
			return
		}
	}
	o[name] = v
}

var severities = map[sensors.Severity]int{
	sensors.SeverityInfo: 1, sensors.SeverityLow: 2, sensors.SeverityMedium: 3, sensors.SeverityHigh: 4, sensors.SeverityCritical: 5,
}

// tactics are ATT&CK's, by objective. Where an objective is none of them, the one that it serves.
var tactics = map[sensors.Objective]struct{ uid, name string }{
	sensors.ObjectiveCryptoMining: {"TA0040", "Impact"}, sensors.ObjectiveEscape: {"TA0004", "Privilege Escalation"},
	sensors.ObjectiveCredentialAccess: {"TA0006", "Credential Access"}, sensors.ObjectiveCommandControl: {"TA0011", "Command and Control"},
	sensors.ObjectiveExfiltration: {"TA0010", "Exfiltration"}, sensors.ObjectiveLateralMovement: {"TA0008", "Lateral Movement"},
	sensors.ObjectivePersistence: {"TA0003", "Persistence"}, sensors.ObjectiveDefenseEvasion: {"TA0005", "Defense Evasion"},
	sensors.ObjectiveExecution: {"TA0002", "Execution"}, sensors.ObjectiveDiscovery: {"TA0007", "Discovery"},
}

func metadata(uid, version string) object {
	return object{
		"version": OCSFVersion, "uid": uid, "product": object{"name": "Stanch", "vendor_name": "Stanch", "version": cmp.Or(version, "dev")},
	}
}

func attacks(objective sensors.Objective, techniques ...string) []object {
	var out []object
	for _, technique := range techniques {
		a := object{}
		if technique != "" {
			a["technique"] = object{"uid": technique}
		}
		if t, ok := tactics[objective]; ok {
			a["tactic"] = object{"uid": t.uid, "name": t.name}
		}
		if len(a) > 0 {
			out = append(out, a)
		}
	}
	return out
}

// attacksOf are the techniques of an incident, each under the tactic of the detection that told it: an incident has one
// objective, and the way there has others.
func attacksOf(in playbooks.Incident) []object {
	var out []object
	seen := map[[2]string]bool{}
	for _, d := range in.Detections {
		key := [2]string{string(d.Objective), d.Technique}
		if d.Technique != "" && !seen[key] {
			out = append(out, attacks(d.Objective, d.Technique)...)
		}
		seen[key] = true
	}
	if len(out) == 0 {
		return attacks(in.Objective, in.Techniques...)
	}
	return out
}

// confidence gives the schema's level and its number of 100.
func confidence(of float64) (id, score int) {
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

// Detection is a detection as an OCSF Detection Finding (class 2004).
func Detection(d sensors.Detection, version string) any {
	level, score := confidence(d.Confidence)
	o := object{
		"class_uid": 2004, "class_name": "Detection Finding", "category_uid": 2, "category_name": "Findings", "activity_id": 1, "activity_name": "Create",
		"type_uid": 200401, "time": d.Time.UnixMilli(), "severity_id": severities[d.Severity], "severity": string(d.Severity), "status_id": 1, "is_alert": true,
		"confidence_id": level, "confidence_score": score, "metadata": metadata(d.ID, version),
	}
	info := object{"uid": d.ID, "title": d.Title, "analytic": object{"uid": d.Rule, "name": d.Title, "type_id": 1, "type": "Rule"}}
	info.set("desc", strings.Join(d.Reasons, " "))
	info.set("attacks", attacks(d.Objective, d.Technique))
	info.set("created_time", d.Time.UnixMilli())
	info["data_sources"] = []string{d.Source}
	o["finding_info"] = info
	o.set("message", d.Title)
	if d.Count > 1 {
		o["count"] = d.Count
	}
	o.set("evidences", evidences(d.Event))
	o.set("resources", resources(d))
	if d.Node != "" {
		o["device"] = object{"hostname": d.Node, "name": d.Node, "type_id": 1}
	}
	return o
}

func evidences(e sensors.Event) []object {
	ev := object{}
	p := object{}
	if e.Process.PID != 0 {
		p["pid"] = e.Process.PID
	}
	p.set("name", cmp.Or(e.Process.Name, e.Process.ExeName()))
	if e.Process.Exe != "" {
		p["file"] = object{"name": e.Process.ExeName(), "path": e.Process.Exe, "type_id": 1}
	}
	p.set("cmd_line", strings.Join(e.Process.Args, " "))
	if len(p) > 0 {
		p["user"] = object{"uid": strconv.FormatUint(uint64(e.Process.UID), 10)}
		if len(e.Process.Ancestors) > 0 {
			a := e.Process.Ancestors[0]
			parent := object{"pid": a.PID}
			parent.set("name", a.ExeName())
			parent.set("cmd_line", strings.Join(a.Args, " "))
			p["parent_process"] = parent
		}
		ev["process"] = p
	}
	if e.File.Path != "" {
		ev["file"] = object{"path": e.File.Path, "name": e.File.Path[strings.LastIndexByte(e.File.Path, '/')+1:], "type_id": 1}
	}
	if e.Network.Address != "" {
		ev["dst_endpoint"] = object{"ip": e.Network.Address, "port": int(e.Network.Port)}
	}
	if e.Network.Domain != "" {
		ev["query"] = object{"hostname": e.Network.Domain}
	}
	if e.Syscall.Name != "" {
		ev["api"] = object{"operation": e.Syscall.Name}
	}
	if e.Actor != "" {
		ev["actor"] = object{"user": object{"name": e.Actor}}
	}
	c := object{}
	c.set("uid", e.Container.ID)
	c.set("name", e.Container.Name)
	c.set("runtime", e.Container.Runtime)
	image := object{}
	image.set("name", e.Container.Image)
	image.set("uid", e.Container.ImageDigest)
	c.set("image", image)
	c.set("pod_uuid", e.Container.Pod.UID)
	ev.set("container", c)
	if len(ev) == 0 {
		return nil
	}
	return []object{ev}
}

func resources(d sensors.Detection) []object {
	c := d.Event.Container
	var out []object
	if c.Pod.UID != "" {
		r := object{"type": "Pod", "uid": c.Pod.UID}
		r.set("name", c.Pod.Name)
		r.set("namespace", c.Pod.Namespace)
		out = append(out, r)
	}
	if c.Workload.Name != "" {
		r := object{"type": c.Workload.Kind, "name": c.Workload.Name}
		r.set("namespace", c.Pod.Namespace)
		out = append(out, r)
	}
	if s := d.Event.Subject; s.Kind != "" {
		r := object{"type": s.Kind, "name": s.Name}
		r.set("namespace", s.Namespace)
		out = append(out, r)
	}
	return out
}

// Incident is an incident as OCSF: a Detection Finding (2004) for the story, and a Remediation Activity (7003) for each thing
// that was held.
func Incident(in playbooks.Incident, version string) []any {
	level, score := confidence(in.Confidence)
	activity, status := 2, 2 // update, in progress
	if !in.Closed.IsZero() {
		activity, status = 3, 4 // close, resolved
	}
	o := object{
		"class_uid": 2004, "class_name": "Detection Finding", "category_uid": 2, "category_name": "Findings", "activity_id": activity, "type_uid": 200400 + activity,
		"time": in.Updated.UnixMilli(), "start_time": in.Opened.UnixMilli(), "severity_id": severities[in.Severity], "severity": string(in.Severity), "status_id": status,
		"is_alert": true, "confidence_id": level, "confidence_score": score, "confidence": strings.Join(in.Reasons, " "), "message": in.Summary, "metadata": metadata(in.ID, version),
	}
	info := object{"uid": in.ID, "title": cmp.Or(title(in), in.ID), "desc": in.Summary, "first_seen_time": in.Opened.UnixMilli(), "last_seen_time": in.Updated.UnixMilli()}
	info.set("attacks", attacksOf(in))
	var related []object
	for _, d := range in.Detections {
		related = append(related, object{"uid": d.ID, "type": d.Rule, "title": d.Title, "count": max(d.Count, 1), "first_seen_time": d.FirstSeen.UnixMilli(), "last_seen_time": d.LastSeen.UnixMilli()})
	}
	info.set("related_events", related)
	o["finding_info"] = info
	w := object{"type": in.Workload.Kind, "name": in.Workload.Name}
	w.set("namespace", in.Workload.Namespace)
	o["resources"] = []object{w}
	o.set("evidences", evidences(in.Trigger.Event))
	out := []any{o}
	for _, l := range in.Leases {
		out = append(out, lease(in, l, version))
	}
	return out
}

// remediations are what an action's facet is to the schema: isolate, evict, restore, harden.
var remediations = map[string]struct {
	id   int
	name string
}{"network": {1, "Isolate"}, "execution": {2, "Evict"}, "replicas": {2, "Evict"}, "identity": {4, "Harden"}, "scheduling": {4, "Harden"}, "image": {4, "Harden"}}

// lease is what was done about it.
func lease(in playbooks.Incident, l playbooks.LeaseReport, version string) object {
	does, ok := remediations[l.Facet]
	if !ok {
		does.id, does.name = 99, "Other"
	}
	status, name := 0, "Unknown"
	switch l.Outcome {
	case playbooks.OutcomeChanged, playbooks.OutcomeUnchanged:
		status, name = 1, "Success"
	case playbooks.OutcomeUnverified:
		status, name = 4, "Partial"
	case playbooks.OutcomeFailed:
		status, name = 6, "Error"
	case playbooks.OutcomeRefused, playbooks.OutcomeDenied, playbooks.OutcomeProposed, playbooks.OutcomeSkipped:
		status, name = 2, "Failure"
	}
	o := object{
		"class_uid": 7003, "class_name": "Remediation Activity", "category_uid": 7, "category_name": "Remediation", "activity_id": does.id, "activity_name": does.name,
		"type_uid": 700300 + does.id, "time": l.At.UnixMilli(), "severity_id": severities[in.Severity], "severity": string(in.Severity), "status_id": status, "status": name,
		"command_uid": l.ID, "metadata": metadata(in.ID+"/"+l.ID, version), "message": l.Action + " of " + l.Target + " is " + l.State,
		"finding_info": object{"uid": in.ID, "title": cmp.Or(title(in), in.ID)},
		"unmapped":     object{"state": l.State, "until": l.ExpiresAt, "verified": l.Verified, "undone": l.Undone},
	}
	o.set("status_detail", l.Reason)
	return o
}

// title is that of the worst detection: what a person reads in a queue.
func title(in playbooks.Incident) string {
	worst, at := display.HeadlineDetection(in)
	if at < 0 {
		return in.Trigger.Title
	}
	return worst.Title
}
