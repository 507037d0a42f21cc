package integrations

import (
	"errors"
	"fmt"
	"strings"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// DecodeTracee decodes one event of Tracee's JSON output or webhook, in one of three formats: events up to version
// 0.23 (`eventName`, `metadata`), the protocol v1beta1 (`name`, `workload`, `threat`), and the webhook of the former
// tracee-rules (`Context`, `SigMetadata`). A finding of a signature or detector is an alert. Other events are
// telemetry.
func DecodeTracee(raw []byte) (DecodedRecord, error) {
	if err := checkLimits(raw); err != nil {
		return DecodedRecord{}, fmt.Errorf("invalid Tracee JSON: %w", err)
	}
	t, err := parseJSONValue(raw)
	if err != nil {
		return DecodedRecord{}, fmt.Errorf("invalid Tracee JSON: %w", err)
	}
	switch {
	case t.lookup("SigMetadata").exists() && t.lookup("Context").exists():
		return decodeTraceeLegacy(t.lookup("Context"), t.lookup("SigMetadata"), raw)
	case t.lookup("eventName").exists():
		return decodeTraceeLegacy(t, t.lookup("metadata"), raw)
	case t.lookup("name").exists() && (t.lookup("workload").exists() || t.lookup("timestamp").exists()):
		return decodeTraceeV1beta1(t, raw)
	}
	// Tracee writes its own log to the same stream if both are JSON.
	if text := orDefault(t.textAt("msg"), t.textAt("M")); text != "" && (t.lookup("level").exists() ||
		t.lookup("L").exists()) {
		return decodeTraceeLog(text)
	}
	return DecodedRecord{}, errors.New("invalid Tracee event: missing name")
}

// decodeTraceeLog decodes a line of Tracee's log: "Lost 12 events" is a health record.
func decodeTraceeLog(text string) (DecodedRecord, error) {
	rest, lost := strings.CutPrefix(text, "Lost ")
	count, what, _ := strings.Cut(rest, " ")
	if n := scalar(count).uint64(); lost && n > 0 && strings.HasSuffix(strings.TrimSpace(what), "events") {
		return healthRecord(SensorHealth{Source: SourceTracee, Dropped: n, Message: "Tracee " + strings.ToLower(text[:1]) +
			text[1:] + "."})
	}
	return DecodedRecord{Telemetry: true}, nil
}

// traceeSeverities maps Tracee's severities, by number and by their name in the protocol.
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

// traceeFinding is a finding of Tracee, independent of the format.
type traceeFinding struct {
	name, title, description, id, severity, category, technique string
}

func (f traceeFinding) toDetection() sensors.Detection {
	rule := f.name
	if _, ok := traceeSignatureMappings[rule]; !ok && traceeSignatureNames[f.id] != "" {
		rule = traceeSignatureNames[f.id]
	}
	meaning, reason := mapRule("Tracee", traceeSignatureMappings, rule, []string{f.category}, findTechnique(f.technique))
	level, ok := traceeSeverities[strings.ToUpper(f.severity)]
	if !ok {
		level = traceeSeverities["2"]
	}
	d := sensors.Detection{
		Rule: rule, Title: orDefault(f.title, f.name), Severity: level.severity, Confidence: level.confidence,
		Source:    SourceTracee,
		Objective: meaning.objective, Technique: meaning.technique,
		Reasons: []string{fmt.Sprintf("Tracee's signature %s fired.", truncate.Bytes(orDefault(f.id, f.name), 60)), reason},
	}
	if f.description != "" {
		d.Reasons = append(d.Reasons, f.description)
	}
	if meaning.confidence > 0 {
		d.Confidence = meaning.confidence
	}
	return d
}

// decodeTraceeLegacy decodes the format up to version 0.23.
func decodeTraceeLegacy(t, meta jsonValue, raw []byte) (DecodedRecord, error) {
	properties := meta.lookup("Properties")
	f := traceeFinding{
		name:  orDefault(meta.textAt("EventName"), orDefault(meta.textAt("Name"), t.textAt("eventName"))),
		title: orDefault(properties.textAt("signatureName"), meta.textAt("Name")), description: meta.textAt("Description"),
		id: orDefault(properties.textAt("signatureID"), meta.textAt("ID")), severity: properties.textAt("Severity"),
		category:  orDefault(properties.textAt("Category"), properties.textAt("MITRE ATT&CK")),
		technique: properties.textAt("external_id"),
	}
	if f.id == "" && f.severity == "" {
		return DecodedRecord{Telemetry: true}, nil
	}
	d := f.toDetection()
	// hostName is not used: it is the name in the process's UTS namespace, which in a container is not the node's
	// name.
	d.Time = t.lookup("timestamp").timestamp().Time
	process := sensors.Process{
		PID: t.lookup("hostProcessId").scalar().uint32(), PPID: t.lookup("hostParentProcessId").scalar().uint32(),
		NSPID: t.lookup("processId").scalar().uint32(),
		UID:   t.lookup("userId").scalar().uint32(), EUID: t.lookup("userId").scalar().uint32(),
		Name: t.textAt("processName"),
		Exe:  t.textAt("executable", "path"),
	}
	if process.PPID != 0 {
		process.Ancestors = []sensors.Ancestor{{PID: process.PPID}}
	}
	d.Event = sensors.Event{
		Process: process,
		Container: sensors.Container{
			ID: orDefault(t.textAt("container", "id"), t.textAt("containerId")), Name: orDefault(t.textAt("container", "name"),
				t.textAt("containerName")),
			Image:       orDefault(t.textAt("container", "image"), t.textAt("containerImage")),
			ImageDigest: digestOf(t.textAt("container", "imageDigest")),
			CgroupID:    t.lookup("cgroupId").scalar().uint64(),
			Pod: sensors.Pod{
				Namespace: orDefault(t.textAt("kubernetes", "podNamespace"), t.textAt("podNamespace")),
				Name:      orDefault(t.textAt("kubernetes", "podName"), t.textAt("podName")),
				UID:       orDefault(t.textAt("kubernetes", "podUID"), t.textAt("podUID")),
			},
		},
	}
	data := t.lookup("args").elements()
	call := t.textAt("syscall")
	if f.name != t.textAt("eventName") {
		call = t.textAt("eventName") // in the oldest format, the event is the one that triggered the signature
	}
	for _, a := range data {
		if a.textAt("name") == "triggeredBy" {
			by := a.lookup("value")
			call = orDefault(by.textAt("name"), call)
			data = append(data, by.lookup("args").elements()...)
		}
	}
	applyTraceeData(&d.Event, call, f.name, data, func(v jsonValue) jsonValue { return v.lookup("value") })
	return finalizeAlert(&d, raw)
}

// decodeTraceeV1beta1 decodes the format of the protocol v1beta1.
func decodeTraceeV1beta1(t jsonValue, raw []byte) (DecodedRecord, error) {
	threat := t.lookup("threat")
	if !threat.exists() {
		return DecodedRecord{Telemetry: true}, nil
	}
	properties := threat.lookup("properties")
	d := traceeFinding{
		name: t.textAt("name"), title: threat.textAt("name"), description: threat.textAt("description"),
		id: orDefault(properties.textAt("id"), properties.textAt("signatureID")),
		// Protobuf's JSON omits the first value of an enumeration: a missing severity is INFO.
		severity: orDefault(threat.textAt("severity"), "0"), category: threat.textAt("mitre", "tactic", "name"),
		technique: threat.textAt("mitre", "technique", "id"),
	}.toDetection()
	d.Time = t.lookup("timestamp").timestamp().Time
	d.Event = decodeTraceeWorkload(t.lookup("workload"))
	from := t.lookup("detected_from")
	data := append(t.lookup("data").elements(), from.lookup("data").elements()...)
	call := orDefault(from.textAt("name"), t.lookup("workload", "process").textAt("thread", "syscall"))
	for _, v := range t.lookup("data").elements() {
		if by := v.lookup("triggered_by"); by.exists() {
			call = orDefault(by.textAt("name"), call)
			data = append(data, by.lookup("data").elements()...)
		}
	}
	applyTraceeData(&d.Event, call, t.textAt("name"), data, func(v jsonValue) jsonValue {
		for _, kind := range []string{"str", "sockaddr", "str_array", "int32", "int64", "u_int32", "u_int64", "bool"} {
			if got := v.lookup(kind); got.exists() {
				return got
			}
		}
		return jsonValue{}
	})
	return finalizeAlert(&d, raw)
}

// decodeTraceeWorkload returns the process and the container of a finding.
func decodeTraceeWorkload(w jsonValue) sensors.Event {
	p := w.lookup("process")
	process := sensors.Process{
		PID: p.lookup("host_pid").scalar().uint32(), NSPID: p.lookup("pid").scalar().uint32(),
		UID: p.lookup("real_user", "id").scalar().uint32(), EUID: p.lookup("real_user", "id").scalar().uint32(),
		Name: p.textAt("thread", "name"), Exe: p.textAt("executable", "path"),
	}
	for _, a := range p.lookup("ancestors").elements() {
		process.Ancestors = append(process.Ancestors, sensors.Ancestor{
			PID:  a.lookup("host_pid").scalar().uint32(),
			Name: a.textAt("thread", "name"), Exe: a.textAt("executable", "path"),
		})
	}
	if len(process.Ancestors) > 0 {
		process.PPID = process.Ancestors[0].PID
	}
	container := w.lookup("container")
	pod, namespace := w.lookup("k8s", "pod"), w.textAt("k8s", "namespace", "name")
	if !pod.exists() {
		pod, namespace = w.lookup("pod"), orDefault(w.textAt("pod", "namespace", "name"), w.textAt("pod", "namespace"))
	}
	event := sensors.Event{Process: process, Container: sensors.Container{
		ID: container.textAt("id"), Name: container.textAt("name"), Image: container.textAt("image", "name"),
		Pod: sensors.Pod{
			Namespace: namespace, Name: pod.textAt("name"), UID: pod.textAt("uid"),
			Labels: pod.lookup("labels").stringMap(),
		},
	}}
	event.Container.ImageDigest = digestOf(container.textAt("image", "id"))
	for _, repo := range container.lookup("image", "repo_digests").textElements() {
		event.Container.ImageDigest = orDefault(digestOf(repo), event.Container.ImageDigest)
	}
	return event
}

// applyTraceeData fills in the event from the data of a Tracee event and of the event that triggered it.
func applyTraceeData(e *sensors.Event, call, name string, data []jsonValue, value func(jsonValue) jsonValue) {
	e.Syscall.Name = syscallName(call)
	e.Kind = kindOfSyscall(e.Syscall.Name)
	if _, ok := syscallKinds[e.Syscall.Name]; !ok {
		if k, ok := traceeSignatureKinds[name]; ok {
			e.Kind = k
		}
	}
	for _, item := range data {
		v := value(item)
		switch strings.ToLower(item.textAt("name")) {
		case "pathname", "path", "file_path", "file path", "new_path", "dst_path", "hidden executable", "cmdpath":
			if s := v.scalar(); e.File.Path == "" {
				e.File.Path = string(s)
			}
		case "argv":
			args := v.textElements()
			if len(args) == 0 {
				args = v.lookup("value").textElements()
			}
			e.Process.Args = args
		case "flags":
			if s := string(v.scalar()); strings.Contains(s, "O_WRONLY") || strings.Contains(s, "O_RDWR") {
				e.File.OpenedForWrite = true
			}
		case "sockaddr", "remote_addr", "addr", "local_addr":
			applyTraceeAddress(e, v)
		case "ip address", "dst_ip", "dst":
			if ip, family := parseAddress(string(v.scalar())); ip != "" {
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
		e.Process.Exe = orDefault(e.Process.Exe, e.File.Path)
		e.Syscall.Detail, e.File = e.File.Path, sensors.File{}
	}
}

func applyTraceeAddress(e *sensors.Event, v jsonValue) {
	if path := v.textAt("sun_path"); path != "" {
		e.Kind, e.File.Path = sensors.KindUnixConnect, path
		return
	}
	e.Network.Address, e.Network.Family = parseAddress(orDefault(v.textAt("sin_addr"), v.textAt("sin6_addr")))
	e.Network.Port = scalar(orDefault(v.textAt("sin_port"), v.textAt("sin6_port"))).port()
}
