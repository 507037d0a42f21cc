// Package foreign turns what other sensors report into detections. It is pure: it refuses to look anything up, and
// leaves empty what the report does not say. Numbers keep every digit.
package foreign

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"stanch/sensors"
)

// falco is Falco's JSON output.
type falco struct {
	UUID         string                     `json:"uuid"`
	Output       string                     `json:"output"`
	Priority     string                     `json:"priority"`
	Rule         string                     `json:"rule"`
	Time         time.Time                  `json:"time"`
	Source       string                     `json:"source"`
	Tags         []string                   `json:"tags"`
	Hostname     string                     `json:"hostname"`
	OutputFields map[string]json.RawMessage `json:"output_fields"`
}

// severities maps Falco's priorities, and how sure a rule of that priority is.
var severities = map[string]struct {
	severity   sensors.Severity
	confidence float64
}{
	"emergency": {sensors.SeverityCritical, 0.9}, "alert": {sensors.SeverityCritical, 0.9}, "critical": {sensors.SeverityCritical, 0.85},
	"error": {sensors.SeverityHigh, 0.7}, "warning": {sensors.SeverityMedium, 0.6}, "notice": {sensors.SeverityLow, 0.5},
	"informational": {sensors.SeverityInfo, 0.3}, "info": {sensors.SeverityInfo, 0.3}, "debug": {sensors.SeverityInfo, 0.1},
}

// objectives maps words in Falco's tags and rule names to what an attacker seems to be after; the first that is
// found counts.
var objectives = []struct {
	word      string
	objective sensors.Objective
}{
	{"crypto", sensors.ObjectiveCryptoMining},
	{"miner", sensors.ObjectiveCryptoMining},
	{"mitre_impact", sensors.ObjectiveCryptoMining},
	{"reverse shell", sensors.ObjectiveCommandControl},
	{"redirect stdout", sensors.ObjectiveCommandControl},
	{"mitre_command_and_control", sensors.ObjectiveCommandControl},
	{"mitre_privilege_escalation", sensors.ObjectiveEscape},
	{"escape", sensors.ObjectiveEscape},
	{"mitre_credential_access", sensors.ObjectiveCredentialAccess},
	{"mitre_lateral_movement", sensors.ObjectiveLateralMovement},
	{"mitre_exfiltration", sensors.ObjectiveExfiltration},
	{"mitre_persistence", sensors.ObjectivePersistence},
	{"mitre_defense_evasion", sensors.ObjectiveDefenceEvasion},
	{"mitre_discovery", sensors.ObjectiveDiscovery},
	{"mitre_execution", sensors.ObjectiveExecution},
}

// maxFields bounds what one report may bring.
const maxFields = 500

// Falco decodes one event of Falco's http_output. What is no alert about a container is an error.
func Falco(raw []byte) (sensors.Detection, error) {
	var f falco
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if err := decoder.Decode(&f); err != nil {
		return sensors.Detection{}, fmt.Errorf("not Falco's JSON: %w", err)
	}
	if f.Rule == "" || f.Priority == "" {
		return sensors.Detection{}, errors.New("not a Falco alert: it has no rule or no priority")
	}
	if len(f.OutputFields) > maxFields {
		return sensors.Detection{}, fmt.Errorf("the alert has %d fields, at most %d are read", len(f.OutputFields), maxFields)
	}
	known, ok := severities[strings.ToLower(f.Priority)]
	if !ok {
		return sensors.Detection{}, fmt.Errorf("the priority %q is none of Falco's", clip(f.Priority))
	}
	get := func(name string) string {
		var s string
		v := f.OutputFields[name]
		if json.Unmarshal(v, &s) == nil {
			if s == "<NA>" {
				return ""
			}
			return s
		}
		if string(v) == "null" {
			return ""
		}
		return string(v)
	}
	number := func(name string) uint32 {
		n, err := strconv.ParseUint(get(name), 10, 32)
		if err != nil {
			return 0
		}
		return uint32(n)
	}
	d := sensors.Detection{
		ID: f.UUID, Rule: f.Rule, Title: f.Rule, Severity: known.severity, Confidence: known.confidence, Source: "falco", Time: f.Time, Node: f.Hostname,
		Objective: sensors.ObjectiveExecution, Reasons: []string{"Falco's rule fired at priority " + f.Priority + "."},
		Event: sensors.Event{
			Kind: sensors.KindExec, Time: f.Time, Node: f.Hostname,
			Process: sensors.Process{PID: number("proc.pid"), PPID: number("proc.ppid"), UID: number("user.uid"), Name: get("proc.name"), Exe: get("proc.exepath"), Args: strings.Fields(get("proc.cmdline"))},
			Container: sensors.Container{
				ID: get("container.id"), Name: get("container.name"), Image: get("container.image.repository"), ImageDigest: get("container.image.digest"),
				Pod: sensors.Pod{Namespace: get("k8s.ns.name"), Name: get("k8s.pod.name"), UID: get("k8s.pod.uid")},
			},
		},
	}
	for field, prefix := range map[string]string{"ka.user.name": "kubernetes:", "ct.user.arn": "aws:"} {
		if name := get(field); name != "" {
			d.Event.Actor = prefix + name
		}
	}
	if tag := get("container.image.tag"); tag != "" && d.Event.Container.Image != "" {
		d.Event.Container.Image += ":" + tag
	}
	if parent := get("proc.pname"); parent != "" {
		d.Event.Process.Ancestors = []sensors.Ancestor{{PID: number("proc.ppid"), Name: parent}}
	}
	words := strings.ToLower(f.Rule + " " + strings.Join(f.Tags, " "))
	for _, o := range objectives {
		if strings.Contains(words, o.word) {
			d.Objective = o.objective
			break
		}
	}
	for _, tag := range f.Tags {
		if len(tag) > 1 && tag[0] == 'T' && tag[1] >= '0' && tag[1] <= '9' {
			d.Technique = tag
			break
		}
	}
	if d.ID == "" {
		sum := sha256.Sum256(raw)
		d.ID = "falco-" + hex.EncodeToString(sum[:12])
	}
	d.Event.ID = d.ID
	if d.Event.Container.ID == "host" {
		d.Event.Container.ID = ""
	}
	if d.Event.Container.ID == "" && d.Event.Container.Pod.Name == "" {
		return sensors.Detection{}, errors.New("the alert is about no container")
	}
	return d, nil
}

func clip(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return s
}
