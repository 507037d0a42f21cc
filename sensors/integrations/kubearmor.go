package integrations

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// kubeArmorRecord is an alert, a log or a message of KubeArmor's relay.
type kubeArmorRecord struct {
	Timestamp   scalar    `json:"Timestamp"` // in seconds
	UpdatedTime timestamp `json:"UpdatedTime"`
	ClusterName string    `json:"ClusterName"`
	HostName    string    `json:"HostName"`

	Namespace string `json:"NamespaceName"`
	Pod       string `json:"PodName"`
	Labels    string `json:"Labels"`
	Owner     struct {
		Ref       string `json:"Ref"` // "Deployment"
		Name      string `json:"Name"`
		Namespace string `json:"Namespace"`
	} `json:"Owner"`
	ContainerID    string `json:"ContainerID"`
	ContainerName  string `json:"ContainerName"`
	ContainerImage string `json:"ContainerImage"` // "registry/name:tag@sha256:…"

	HostPPID      scalar `json:"HostPPID"`
	HostPID       scalar `json:"HostPID"`
	PID           scalar `json:"PID"`
	UID           scalar `json:"UID"`
	ParentProcess string `json:"ParentProcessName"`
	Process       string `json:"ProcessName"`
	TTY           string `json:"TTY"`
	Cwd           string `json:"Cwd"`

	Policy    string            `json:"PolicyName"`
	Severity  scalar            `json:"Severity"` // "1" to "10"
	Tags      string            `json:"Tags"`
	ATags     []string          `json:"ATags"`
	Message   string            `json:"Message"`
	Type      string            `json:"Type"`
	Source    string            `json:"Source"`
	Operation string            `json:"Operation"` // "Process", "File", "Network", "Syscall", "Capabilities", …
	Resource  string            `json:"Resource"`
	Data      string            `json:"Data"`
	EventData map[string]scalar `json:"EventData"`
	Enforcer  string            `json:"Enforcer"`
	Action    string            `json:"Action"` // "Audit", "Block"
	Result    string            `json:"Result"` // "Passed", "Permission denied", …
	// Level is set for a message of the agent itself.
	Level string `json:"Level"`
}

// The types of KubeArmor's records.
const (
	kubeArmorPolicy        = "MatchedPolicy"
	kubeArmorHostPolicy    = "MatchedHostPolicy"
	kubeArmorNetworkPolicy = "MatchedNetworkPolicy"
	kubeArmorLog           = "ContainerLog"
	kubeArmorHostLog       = "HostLog"
	kubeArmorSystemEvent   = "SystemEvent"
)

// The placeholder names that KubeArmor uses outside of Kubernetes; see its core/dockerHandler.go.
const (
	kubeArmorDockerNamespace = "container_namespace"
	kubeArmorUnknownName     = "Unknown"
)

// DecodeKubeArmor decodes one record of KubeArmor's relay or of `karmor logs --json`. Container and host logs are
// telemetry, and a message of the agent is a health record.
func DecodeKubeArmor(raw []byte) (DecodedRecord, error) {
	var k kubeArmorRecord
	if err := checkLimits(raw); err != nil {
		return DecodedRecord{}, fmt.Errorf("invalid KubeArmor JSON: %w", err)
	}
	if err := json.Unmarshal(raw, &k); err != nil {
		return DecodedRecord{}, fmt.Errorf("invalid KubeArmor JSON: %w", err)
	}
	switch {
	case k.Type == kubeArmorLog || k.Type == kubeArmorHostLog || k.Type == kubeArmorSystemEvent:
		return DecodedRecord{Telemetry: true}, nil
	case k.Level != "" && k.Policy == "":
		return healthRecord(SensorHealth{
			Source: SourceKubeArmor, Node: k.HostName, Time: k.timestamp(),
			Message: "KubeArmor reported: " + k.Message,
		})
	case k.Type != kubeArmorPolicy && k.Type != kubeArmorHostPolicy && k.Type != kubeArmorNetworkPolicy:
		return DecodedRecord{}, fmt.Errorf("not a KubeArmor alert: its type is %q", truncate.Bytes(k.Type, 60))
	case k.Policy == "":
		return DecodedRecord{}, errors.New("invalid KubeArmor alert: missing policy")
	}
	tags := k.ATags
	if len(tags) == 0 {
		tags = strings.Split(k.Tags, ",")
	}
	tags = tags[:min(len(tags), maxLabels)]
	technique := ""
	for _, tag := range tags {
		technique = orDefault(technique, findTechnique(tag))
	}
	meaning, reason := k.mapPolicy(tags, technique)
	severity, confidence := k.mapSeverity()
	d := sensors.Detection{
		Rule: k.Policy, Title: orDefault(k.Message, k.Policy), Severity: severity, Confidence: confidence,
		Source: SourceKubeArmor, Time: k.timestamp(), Node: k.HostName,
		Objective: meaning.objective, Technique: meaning.technique,
		Reasons: []string{fmt.Sprintf("KubeArmor's policy %s matched.", truncate.Bytes(k.Policy, 60)), reason},
	}
	switch {
	case strings.Contains(k.Action, "Block") && k.Result != "Passed":
		d.Reasons = append(d.Reasons, "KubeArmor blocked it.")
	case k.Action != "":
		d.Reasons = append(d.Reasons, "KubeArmor allowed it and logged it.")
	}
	d.Event = k.toEvent()
	return finalizeAlert(&d, raw)
}

// timestamp returns the more precise of the two times in a record.
func (k *kubeArmorRecord) timestamp() time.Time {
	if !k.UpdatedTime.IsZero() {
		return k.UpdatedTime.Time
	}
	if n := k.Timestamp.uint64(); n > 0 && n < math.MaxInt32*2 {
		return time.Unix(int64(n), 0)
	}
	return time.Time{}
}

// mapSeverity maps KubeArmor's severity from 1 to 10, which the author of the policy chooses. An alert without one
// comes from a default posture.
func (k *kubeArmorRecord) mapSeverity() (sensors.Severity, float64) {
	switch n := k.Severity.uint64(); {
	case n >= 9:
		return sensors.SeverityCritical, 0.7
	case n >= 7:
		return sensors.SeverityHigh, 0.65
	case n >= 4:
		return sensors.SeverityMedium, 0.6
	case n >= 2:
		return sensors.SeverityLow, 0.5
	}
	return sensors.SeverityLow, 0.4
}

func (k *kubeArmorRecord) toEvent() sensors.Event {
	call := strings.ToLower(strings.TrimPrefix(orDefault(string(k.EventData["Syscall"]), k.fieldValue(k.Data, "syscall")),
		"SYS_"))
	image, digest := k.ContainerImage, ""
	if name, d, ok := strings.Cut(image, "@"); ok {
		image, digest = name, d
	}
	e := sensors.Event{
		Kind: kindOfSyscall(call), Syscall: sensors.Syscall{Name: call, Failed: k.Result != "" && k.Result != "Passed"},
		Process: sensors.Process{
			PID: k.HostPID.uint32(), PPID: k.HostPPID.uint32(), NSPID: k.PID.uint32(), UID: k.UID.uint32(), EUID: k.UID.uint32(),
			Name: baseName(k.Process), Exe: k.Process, Cwd: k.Cwd, TTY: k.TTY,
			Args: splitCommandLine(k.Source),
		},
		Container: sensors.Container{
			ID: k.ContainerID, Name: k.ContainerName, Image: image, ImageDigest: digest,
			Pod: sensors.Pod{Namespace: k.Namespace, Name: k.Pod, Labels: parseKubeArmorLabels(k.Labels)},
		},
	}
	if k.Namespace == kubeArmorDockerNamespace || k.Namespace == kubeArmorUnknownName || k.Pod == kubeArmorUnknownName {
		e.Container.Pod = sensors.Pod{} // KubeArmor's placeholders on a machine without Kubernetes
	} else if k.Owner.Name != "" && k.Owner.Ref != "" {
		e.Container.Workload = sensors.Workload{Kind: k.Owner.Ref, Name: k.Owner.Name}
	}
	if k.ParentProcess != "" || k.HostPPID.uint32() != 0 {
		e.Process.Ancestors = []sensors.Ancestor{{
			PID: k.HostPPID.uint32(), Name: baseName(k.ParentProcess),
			Exe: k.ParentProcess,
		}}
	}
	resource, _, _ := strings.Cut(k.Resource, " ")
	switch k.Operation {
	case "Process":
		// Source is the process that started another one, and Resource the process that was started.
		e.Kind, e.Process.Args = sensors.KindExec, splitCommandLine(k.Resource)
	case "File":
		if _, ok := syscallKinds[call]; !ok || e.Kind == sensors.KindExec {
			e.Kind = sensors.KindFileOpen
		}
		e.File = sensors.File{Path: resource, OpenedForWrite: e.Kind != sensors.KindFileOpen ||
			strings.Contains(k.Data, "O_WRONLY") || strings.Contains(k.Data, "O_RDWR")}
	case "Network":
		k.fillNetwork(&e, call)
	default:
		e.Syscall.Detail = k.Resource
	}
	return e
}

func (k *kubeArmorRecord) fillNetwork(e *sensors.Event, call string) {
	value := func(names ...string) string {
		for _, name := range names {
			if v := orDefault(k.fieldValue(k.Resource, name), string(k.EventData[name])); v != "" {
				return v
			}
		}
		return ""
	}
	e.Network.Address, e.Network.Family = parseAddress(value("sin_addr", "sin6_addr", "remoteip", "RemoteIP"))
	e.Network.Port = scalar(value("sin_port", "sin6_port", "port", "Port")).port()
	e.Network.Protocol = strings.ToLower(value("protocol", "Protocol"))
	if e.Network.Protocol == "0" {
		e.Network.Protocol = ""
	}
	e.Network.Domain = strings.TrimSuffix(strings.ToLower(value("domain_name", "DomainName")), ".")
	switch path := value("sun_path"); {
	case path != "":
		e.Kind, e.File.Path = sensors.KindUnixConnect, path
	case strings.Contains(k.Resource, "SOCK_RAW"):
		e.Kind = sensors.KindRawSocket
	case call == "bind" || call == "listen" || strings.Contains(call, "accept"):
		e.Kind = sensors.KindListen
	default:
		e.Kind = sensors.KindConnect
	}
}

// fieldValue returns the value of a field in text such as "syscall=SYS_CONNECT fd=10", or "".
func (k *kubeArmorRecord) fieldValue(text, name string) string {
	for field := range strings.FieldsSeq(text) {
		if v, ok := strings.CutPrefix(field, name+"="); ok {
			return v
		}
	}
	return ""
}

// parseKubeArmorLabels parses "app=web,tier=front".
func parseKubeArmorLabels(s string) map[string]string {
	if s == "" {
		return nil
	}
	labels := map[string]string{}
	for pair := range strings.SplitSeq(s, ",") {
		if key, value, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && key != "" {
			labels[key] = value
		}
	}
	return labels
}
