package foreign

import (
	"errors"
	"fmt"
	"strings"

	"stanch/sensors"
)

// Tracee decodes one event of Tracee's JSON output or webhook, in each of its shapes: that of its events up to version
// 0.23 (`eventName`, `metadata`), that of its protocol v1beta1 (`name`, `workload`, `threat`), and that of the webhook of
// tracee-rules before they were one (`Context`, `SigMetadata`). An alert is what a signature or detector found; every
// other event is telemetry.
func Tracee(raw []byte) (Report, error) {
	if err := bounded(raw); err != nil {
		return Report{}, fmt.Errorf("not Tracee's JSON: %w", err)
	}
	t, err := parseTree(raw)
	if err != nil {
		return Report{}, fmt.Errorf("not Tracee's JSON: %w", err)
	}
	switch {
	case t.at("SigMetadata").exists() && t.at("Context").exists():
		return traceeEvent(t.at("Context"), t.at("SigMetadata"), raw)
	case t.at("eventName").exists():
		return traceeEvent(t, t.at("metadata"), raw)
	case t.at("name").exists() && (t.at("workload").exists() || t.at("timestamp").exists()):
		return traceeV1beta1(t, raw)
	}
	// Tracee's own log goes to the same stream when both are JSON.
	if text := orElse(t.text("msg"), t.text("M")); text != "" && (t.at("level").exists() || t.at("L").exists()) {
		return traceeLog(text)
	}
	return Report{}, errors.New("not an event of Tracee: it has no name")
}

// traceeLog reads a line of Tracee's log: "Lost 12 events" is a word about its health.
func traceeLog(text string) (Report, error) {
	rest, lost := strings.CutPrefix(text, "Lost ")
	count, what, _ := strings.Cut(rest, " ")
	if n := scalar(count).uint64(); lost && n > 0 && strings.HasSuffix(strings.TrimSpace(what), "events") {
		return health(Health{Source: KindTracee, Dropped: n, Message: "Tracee " + strings.ToLower(text[:1]) + text[1:] + "."})
	}
	return Report{Telemetry: true}, nil
}

// traceeSeverities are Tracee's, by number and by the name in its protocol.
var traceeSeverities = map[string]struct {
	severity   sensors.Severity
	confidence float64
}{
	"0": {sensors.SeverityInfo, 0.3}, "INFO": {sensors.SeverityInfo, 0.3},
	"1": {sensors.SeverityLow, 0.5}, "LOW": {sensors.SeverityLow, 0.5},
	"2": {sensors.SeverityMedium, 0.6}, "MEDIUM": {sensors.SeverityMedium, 0.6},
	"3": {sensors.SeverityHigh, 0.7}, "HIGH": {sensors.SeverityHigh, 0.7},
	"4": {sensors.SeverityCritical, 0.85}, "CRITICAL": {sensors.SeverityCritical, 0.85},
}

// finding is what Tracee says about what it found, whatever the shape.
type finding struct {
	name, title, description, id, severity, category, technique string
}

func (f finding) detection() sensors.Detection {
	rule := f.name
	if _, ok := traceeRules[rule]; !ok && traceeIDs[f.id] != "" {
		rule = traceeIDs[f.id]
	}
	meaning, reason := interpret("Tracee", traceeRules, rule, []string{f.category}, techniqueIn(f.technique))
	level, ok := traceeSeverities[strings.ToUpper(f.severity)]
	if !ok {
		level = traceeSeverities["2"]
	}
	d := sensors.Detection{
		Rule: rule, Title: orElse(f.title, f.name), Severity: level.severity, Confidence: level.confidence, Source: KindTracee,
		Objective: meaning.objective, Technique: meaning.technique,
		Reasons: []string{fmt.Sprintf("Tracee's signature %s fired.", clip(orElse(f.id, f.name))), reason},
	}
	if f.description != "" {
		d.Reasons = append(d.Reasons, f.description)
	}
	if meaning.confidence > 0 {
		d.Confidence = meaning.confidence
	}
	return d
}

// traceeEvent reads the shape up to version 0.23.
func traceeEvent(t, meta tree, raw []byte) (Report, error) {
	properties := meta.at("Properties")
	f := finding{
		name: orElse(meta.text("EventName"), orElse(meta.text("Name"), t.text("eventName"))), title: orElse(properties.text("signatureName"), meta.text("Name")), description: meta.text("Description"),
		id: orElse(properties.text("signatureID"), meta.text("ID")), severity: properties.text("Severity"),
		category: orElse(properties.text("Category"), properties.text("MITRE ATT&CK")), technique: properties.text("external_id"),
	}
	if f.id == "" && f.severity == "" {
		return Report{Telemetry: true}, nil
	}
	d := f.detection()
	// hostName is the name in the process's own UTS namespace, which in a container is not the node's: it is not taken.
	d.Time = t.at("timestamp").instant().Time
	process := sensors.Process{
		PID: t.at("hostProcessId").scalar().uint32(), PPID: t.at("hostParentProcessId").scalar().uint32(), NSPID: t.at("processId").scalar().uint32(),
		UID: t.at("userId").scalar().uint32(), EUID: t.at("userId").scalar().uint32(), Name: t.text("processName"), Exe: t.text("executable", "path"),
	}
	if process.PPID != 0 {
		process.Ancestors = []sensors.Ancestor{{PID: process.PPID}}
	}
	d.Event = sensors.Event{
		Process: process,
		Container: sensors.Container{
			ID: orElse(t.text("container", "id"), t.text("containerId")), Name: orElse(t.text("container", "name"), t.text("containerName")),
			Image: orElse(t.text("container", "image"), t.text("containerImage")), ImageDigest: digestOf(t.text("container", "imageDigest")),
			CgroupID: t.at("cgroupId").scalar().uint64(),
			Pod: sensors.Pod{
				Namespace: orElse(t.text("kubernetes", "podNamespace"), t.text("podNamespace")),
				Name:      orElse(t.text("kubernetes", "podName"), t.text("podName")), UID: orElse(t.text("kubernetes", "podUID"), t.text("podUID")),
			},
		},
	}
	data := t.at("args").list()
	call := t.text("syscall")
	if f.name != t.text("eventName") {
		call = t.text("eventName") // in the oldest shape the event is the one that the signature saw
	}
	for _, a := range data {
		if a.text("name") == "triggeredBy" {
			by := a.at("value")
			call = orElse(by.text("name"), call)
			data = append(data, by.at("args").list()...)
		}
	}
	traceeData(&d.Event, call, f.name, data, func(v tree) tree { return v.at("value") })
	return finish(&d, raw)
}

// traceeV1beta1 reads the shape of the protocol v1beta1.
func traceeV1beta1(t tree, raw []byte) (Report, error) {
	threat := t.at("threat")
	if !threat.exists() {
		return Report{Telemetry: true}, nil
	}
	properties := threat.at("properties")
	d := finding{
		name: t.text("name"), title: threat.text("name"), description: threat.text("description"), id: orElse(properties.text("id"), properties.text("signatureID")),
		// In protobuf's JSON the first of an enumeration is left out: no severity is INFO.
		severity: orElse(threat.text("severity"), "0"), category: threat.text("mitre", "tactic", "name"), technique: threat.text("mitre", "technique", "id"),
	}.detection()
	d.Time = t.at("timestamp").instant().Time
	w := t.at("workload")
	p := w.at("process")
	process := sensors.Process{
		PID: p.at("host_pid").scalar().uint32(), NSPID: p.at("pid").scalar().uint32(), UID: p.at("real_user", "id").scalar().uint32(), EUID: p.at("real_user", "id").scalar().uint32(),
		Name: p.text("thread", "name"), Exe: p.text("executable", "path"),
	}
	for _, a := range p.at("ancestors").list() {
		process.Ancestors = append(process.Ancestors, sensors.Ancestor{PID: a.at("host_pid").scalar().uint32(), Name: a.text("thread", "name"), Exe: a.text("executable", "path")})
	}
	if len(process.Ancestors) > 0 {
		process.PPID = process.Ancestors[0].PID
	}
	container := w.at("container")
	pod, namespace := w.at("k8s", "pod"), w.text("k8s", "namespace", "name")
	if !pod.exists() {
		pod, namespace = w.at("pod"), orElse(w.text("pod", "namespace", "name"), w.text("pod", "namespace"))
	}
	d.Event = sensors.Event{Process: process, Container: sensors.Container{
		ID: container.text("id"), Name: container.text("name"), Image: container.text("image", "name"),
		Pod: sensors.Pod{Namespace: namespace, Name: pod.text("name"), UID: pod.text("uid"), Labels: pod.at("labels").labels()},
	}}
	d.Event.Container.ImageDigest = digestOf(container.text("image", "id"))
	for _, repo := range container.at("image", "repo_digests").texts() {
		d.Event.Container.ImageDigest = orElse(digestOf(repo), d.Event.Container.ImageDigest)
	}
	from := t.at("detected_from")
	data := append(t.at("data").list(), from.at("data").list()...)
	call := orElse(from.text("name"), p.text("thread", "syscall"))
	for _, v := range t.at("data").list() {
		if by := v.at("triggered_by"); by.exists() {
			call = orElse(by.text("name"), call)
			data = append(data, by.at("data").list()...)
		}
	}
	traceeData(&d.Event, call, t.text("name"), data, func(v tree) tree {
		for _, kind := range []string{"str", "sockaddr", "str_array", "int32", "int64", "u_int32", "u_int64", "bool"} {
			if got := v.at(kind); got.exists() {
				return got
			}
		}
		return tree{}
	})
	return finish(&d, raw)
}

// traceeData puts the data of an event, and of the one that it was found in, into ours.
func traceeData(e *sensors.Event, call, name string, data []tree, value func(tree) tree) {
	e.Call.Name = callName(call)
	e.Kind = kindOf(e.Call.Name)
	if _, ok := calls[e.Call.Name]; !ok {
		if k, ok := traceeKinds[name]; ok {
			e.Kind = k
		}
	}
	for _, item := range data {
		v := value(item)
		switch strings.ToLower(item.text("name")) {
		case "pathname", "path", "file_path", "file path", "new_path", "dst_path", "hidden executable", "cmdpath":
			if s := v.scalar(); e.File.Path == "" {
				e.File.Path = string(s)
			}
		case "argv":
			args := v.texts()
			if len(args) == 0 {
				args = v.at("value").texts()
			}
			e.Process.Args = args
		case "flags":
			if s := string(v.scalar()); strings.Contains(s, "O_WRONLY") || strings.Contains(s, "O_RDWR") {
				e.File.Write = true
			}
		case "sockaddr", "remote_addr", "addr", "local_addr":
			traceeAddress(e, v)
		case "ip address", "dst_ip", "dst":
			if ip, family := address(string(v.scalar())); ip != "" {
				e.Network.Address, e.Network.Family = ip, family
			}
		case "port", "dst_port":
			e.Network.Port = v.scalar().port()
		case "query", "dst_dns":
			e.Network.Domain = strings.TrimSuffix(strings.ToLower(string(v.scalar())), ".")
		}
	}
	if e.Kind == sensors.KindExec && e.Network.Address != "" {
		e.Kind = sensors.KindConnect
	}
	if e.Kind == sensors.KindExec {
		e.Process.Exe = orElse(e.Process.Exe, e.File.Path)
		e.Call.Detail, e.File = e.File.Path, sensors.File{}
	}
}

func traceeAddress(e *sensors.Event, v tree) {
	if path := v.text("sun_path"); path != "" {
		e.Kind, e.File.Path = sensors.KindUnix, path
		return
	}
	e.Network.Address, e.Network.Family = address(orElse(v.text("sin_addr"), v.text("sin6_addr")))
	e.Network.Port = scalar(orElse(v.text("sin_port"), v.text("sin6_port"))).port()
}
