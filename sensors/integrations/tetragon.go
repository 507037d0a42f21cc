package integrations

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// tetragonRecord is one line of Tetragon's JSON export: GetEventsResponse in protobuf's JSON encoding.
type tetragonRecord struct {
	Exec       *tetragonHook `json:"process_exec"`
	Exit       *tetragonHook `json:"process_exit"`
	Loader     *tetragonHook `json:"process_loader"`
	Kprobe     *tetragonHook `json:"process_kprobe"`
	Tracepoint *tetragonHook `json:"process_tracepoint"`
	Uprobe     *tetragonHook `json:"process_uprobe"`
	USDT       *tetragonHook `json:"process_usdt"`
	LSM        *tetragonHook `json:"process_lsm"`
	Throttle   *struct {
		Type   string `json:"type"`
		Cgroup string `json:"cgroup"`
	} `json:"process_throttle"`
	RateLimit *struct {
		Dropped scalar `json:"number_of_dropped_process_events"`
	} `json:"rate_limit_info"`
	Test *json.RawMessage `json:"test"`

	NodeName string    `json:"node_name"`
	Time     timestamp `json:"time"`
	// AggregationInfo is set if Tetragon aggregated similar events.
	AggregationInfo struct {
		Count scalar `json:"count"`
	} `json:"aggregation_info"`
}

// tetragonHook is an event of any hook, because their messages share their fields.
type tetragonHook struct {
	Process   *tetragonProcess  `json:"process"`
	Parent    *tetragonProcess  `json:"parent"`
	Ancestors []tetragonProcess `json:"ancestors"`

	Function string `json:"function_name"` // of a kprobe or LSM hook
	Subsys   string `json:"subsys"`        // of a tracepoint
	Event    string `json:"event"`
	Path     string `json:"path"` // the binary of a uprobe
	Symbol   string `json:"symbol"`
	Provider string `json:"provider"` // of a USDT probe
	Name     string `json:"name"`

	Args   []tetragonArg `json:"args"`
	Return *tetragonArg  `json:"return"`

	Action       string   `json:"action"`
	ReturnAction string   `json:"return_action"`
	Policy       string   `json:"policy_name"`
	Message      string   `json:"message"`
	Tags         []string `json:"tags"`
}

type tetragonProcess struct {
	ExecID     string       `json:"exec_id"`
	PID        scalar       `json:"pid"`
	UID        scalar       `json:"uid"`
	Cwd        string       `json:"cwd"`
	Binary     string       `json:"binary"`
	Arguments  string       `json:"arguments"`
	Flags      string       `json:"flags"`
	StartTime  timestamp    `json:"start_time"`
	Docker     string       `json:"docker"`
	Pod        *tetragonPod `json:"pod"`
	InInitTree *bool        `json:"in_init_tree"`

	Credentials struct {
		UID  scalar `json:"uid"`
		GID  scalar `json:"gid"`
		EUID scalar `json:"euid"`
	} `json:"process_credentials"`
	Properties struct {
		SetUID  *scalar           `json:"setuid"`
		SetGID  *scalar           `json:"setgid"`
		Changed []json.RawMessage `json:"privileges_changed"`
	} `json:"binary_properties"`
}

type tetragonPod struct {
	Namespace    string            `json:"namespace"`
	Name         string            `json:"name"`
	UID          string            `json:"uid"`
	Labels       map[string]string `json:"pod_labels"`
	Workload     string            `json:"workload"`
	WorkloadKind string            `json:"workload_kind"`
	Container    struct {
		ID    string `json:"id"` // "containerd://…"
		Name  string `json:"name"`
		Image struct {
			ID   string `json:"id"` // "registry/name@sha256:…"
			Name string `json:"name"`
		} `json:"image"`
		StartTime timestamp `json:"start_time"`
		PID       scalar    `json:"pid"`
		// MaybeExecProbe reports whether the process is probably an exec probe of the pod.
		MaybeExecProbe bool `json:"maybe_exec_probe"`
	} `json:"container"`
}

// DecodeTetragon decodes one line of Tetragon's JSON export. An event of a hook in a TracingPolicy is an alert.
// Process starts and exits, which Tetragon exports without a policy, are telemetry. This is not configurable, because
// a policy on execve reports the same events together with a reason.
func DecodeTetragon(raw []byte) (DecodedRecord, error) {
	var t tetragonRecord
	if err := checkLimits(raw); err != nil {
		return DecodedRecord{}, fmt.Errorf("invalid Tetragon JSON: %w", err)
	}
	if err := json.Unmarshal(raw, &t); err != nil {
		return DecodedRecord{}, fmt.Errorf("invalid Tetragon JSON: %w", err)
	}
	h := SensorHealth{Source: SourceTetragon, Node: t.NodeName, Time: t.Time.Time}
	switch {
	case t.Exec != nil, t.Exit != nil, t.Loader != nil, t.Test != nil:
		return DecodedRecord{Telemetry: true}, nil
	case t.RateLimit != nil:
		h.Dropped, h.Message = t.RateLimit.Dropped.uint64(), "Tetragon's export is rate-limited and dropped events."
		return healthRecord(h)
	case t.Throttle != nil && t.Throttle.Type == "THROTTLE_START":
		h.Message = "Tetragon started to throttle the events of the cgroup " + truncate.Bytes(t.Throttle.Cgroup, 60) + "."
		return healthRecord(h)
	case t.Throttle != nil:
		h.Message = "Tetragon stopped throttling the events of the cgroup " + truncate.Bytes(t.Throttle.Cgroup, 60) + "."
		return healthRecord(h)
	}
	for _, hook := range []*tetragonHook{t.Kprobe, t.Tracepoint, t.Uprobe, t.USDT, t.LSM} {
		if hook != nil {
			return t.decodeAlert(hook, raw)
		}
	}
	return DecodedRecord{}, errors.New("unknown kind of Tetragon event")
}

func (t *tetragonRecord) decodeAlert(hook *tetragonHook, raw []byte) (DecodedRecord, error) {
	if hook.Policy == "" {
		// An event without a policy was not requested as an alert.
		return DecodedRecord{Telemetry: true}, nil
	}
	if hook.Process == nil {
		return DecodedRecord{}, errors.New("invalid Tetragon event: missing process")
	}
	meaning, reason := mapRule("Tetragon", nil, hook.Policy, hook.Tags, "")
	if o, ok := tetragonObjective(hook.Tags); ok && strings.HasSuffix(reason, "is a guess.") {
		meaning.objective, reason = o, "Its objective was inferred from its policy's tag."
	}
	severity, confidence := sensors.SeverityMedium, 0.5
	for _, tag := range hook.Tags {
		if s, ok := tetragonSeverities[strings.ToLower(tag)]; ok {
			severity = s
		}
	}
	where := orDefault(hook.Function, strings.Trim(hook.Subsys+"/"+hook.Event, "/"))
	where = orDefault(where, strings.Trim(hook.Path+":"+orDefault(hook.Symbol, hook.Name), ":"))
	d := sensors.Detection{
		Rule: hook.Policy, Title: orDefault(hook.Message, hook.Policy), Severity: severity, Confidence: confidence,
		Source: SourceTetragon,
		Time:   t.Time.Time, Node: t.NodeName, Objective: meaning.objective, Technique: meaning.technique,
		Reasons: []string{
			fmt.Sprintf("Tetragon's policy %s matched at %s.", truncate.Bytes(hook.Policy, 60), truncate.Bytes(where, 60)),
			reason,
		},
	}
	if what, ok := tetragonActions[hook.Action]; ok {
		d.Reasons = append(d.Reasons, what)
	}
	if n := t.AggregationInfo.Count.uint32(); n > 1 {
		d.Count = int(min(n, 1_000_000))
	}
	d.Event = hook.toEvent()
	return finalizeAlert(&d, raw)
}

// toEvent returns the event that the hook reports.
func (hook *tetragonHook) toEvent() sensors.Event {
	p := hook.Process
	call := syscallName(hook.Function)
	if hook.Event != "" {
		call = syscallName(hook.Event)
	}
	e := sensors.Event{
		Kind: kindOfSyscall(call), Process: p.toProcess(), Container: p.toContainer(),
		Syscall: sensors.Syscall{Name: call},
	}
	for i, ancestor := range append([]tetragonProcess{*valueOrZero(hook.Parent)}, hook.Ancestors...) {
		a := ancestor.toProcess()
		if i == 0 {
			e.Process.PPID = a.PID
		}
		if a.Exe != "" || a.PID != 0 {
			e.Process.Ancestors = append(e.Process.Ancestors, sensors.Ancestor{
				PID: a.PID, Name: a.Name, Exe: a.Exe,
				Args: a.Args,
			})
		}
	}
	hook.applyArguments(&e)
	return e
}

func valueOrZero[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	return p
}

func (p *tetragonProcess) toProcess() sensors.Process {
	out := sensors.Process{
		PID: p.PID.uint32(), UID: p.UID.uint32(), EUID: p.UID.uint32(), Exe: p.Binary, Name: baseName(p.Binary), Cwd: p.Cwd,
		ArgsTruncated: strings.Contains(p.Flags, "truncArgs"),
	}
	if p.Credentials.EUID != "" {
		out.UID, out.EUID, out.GID = p.Credentials.UID.uint32(), p.Credentials.EUID.uint32(), p.Credentials.GID.uint32()
	}
	if p.Binary != "" {
		out.Args = append([]string{p.Binary}, splitCommandLine(p.Arguments)...)
	}
	out.HasSetIDBits = p.Properties.SetUID != nil || p.Properties.SetGID != nil
	out.PrivilegesGained = len(p.Properties.Changed) > 0
	out.ExecedInto = p.InInitTree != nil && !*p.InInitTree && (p.Docker != "" || p.Pod != nil)
	if p.Pod != nil {
		out.NSPID = p.Pod.Container.PID.uint32()
		// An exec probe is started from outside the container too, but by the kubelet.
		out.ExecedInto = out.ExecedInto && !p.Pod.Container.MaybeExecProbe
	}
	return out
}

func (p *tetragonProcess) toContainer() sensors.Container {
	c := sensors.Container{ID: p.Docker}
	pod := p.Pod
	if pod == nil {
		return c
	}
	c.Runtime, c.ID = splitContainerID(pod.Container.ID, c.ID)
	c.Name, c.Image, c.StartedAt = pod.Container.Name, pod.Container.Image.Name, pod.Container.StartTime.Time
	c.ImageDigest = digestOf(pod.Container.Image.ID)
	c.Pod = sensors.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Labels: pod.Labels}
	if pod.Workload != "" && pod.WorkloadKind != "" {
		c.Workload = sensors.Workload{Kind: pod.WorkloadKind, Name: pod.Workload}
	}
	return c
}

// splitContainerID splits a container ID such as "containerd://abc" into runtime and ID.
func splitContainerID(s, otherwise string) (runtime, id string) {
	if runtime, id, ok := strings.Cut(s, "://"); ok {
		return runtime, id
	}
	return "", orDefault(s, otherwise)
}

// digestOf returns the digest in an image ID, "registry/name@sha256:…" or "sha256:…", or "".
func digestOf(image string) string {
	if _, digest, ok := strings.Cut(image, "@"); ok {
		return digest
	}
	if strings.HasPrefix(image, "sha256:") {
		return image
	}
	return ""
}

func baseName(path string) string {
	return path[strings.LastIndexByte(path, '/')+1:]
}
