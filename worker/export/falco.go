package export

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/sensors"
)

// falcoPriorities are Falco's priorities, by severity.
var falcoPriorities = map[sensors.Severity]string{
	sensors.SeverityInfo: "Informational", sensors.SeverityLow: "Notice", sensors.SeverityMedium: "Warning",
	sensors.SeverityHigh: "Error", sensors.SeverityCritical: "Critical",
}

// falcoEventTypes are the system calls that Falco uses as event types.
var falcoEventTypes = map[sensors.Kind]string{
	sensors.KindExec: "execve", sensors.KindExit: "procexit", sensors.KindConnect: "connect",
	sensors.KindFileOpen: "openat", sensors.KindFileDelete: "unlinkat",
	sensors.KindChmod: "fchmodat", sensors.KindUnixConnect: "connect", sensors.KindListen: "listen",
	sensors.KindDNS: "sendto", sensors.KindRawSocket: "socket",
}

// FalcoEvent returns a detection in Falco's JSON output format. rule is Falco's name of the rule; "" means Stanch's
// title.
func FalcoEvent(d sensors.Detection, rule string) any {
	if rule == "" {
		rule = d.Title
	}
	source, fields := falcoFields(d)
	priority := falcoPriorities[d.Severity]
	return map[string]any{
		"uuid": d.ID, "output": fmt.Sprintf("%s: %s %s (%s)", d.Time.UTC().Format("15:04:05.000000000"), priority, d.Title,
			strings.Join(d.Reasons, " ")),
		"priority": priority, "rule": rule, "time": d.Time.UTC().Format(time.RFC3339Nano), "source": source,
		"tags":     falcoTags(d),
		"hostname": d.Node, "output_fields": fields,
	}
}

// falcoFields returns Falco's source of an event, and its fields.
func falcoFields(d sensors.Detection) (source string, fields map[string]any) {
	e := d.Event
	fields = map[string]any{"evt.time": d.Time.UnixNano(), "stanch.rule": d.Rule, "stanch.confidence": d.Confidence}
	put := func(name string, v any) {
		if s, text := v.(string); text && s == "" {
			return
		}
		fields[name] = v
	}
	kind := falcoEventTypes[e.Kind]
	if e.Syscall.Name != "" {
		kind = e.Syscall.Name
	}
	put("evt.type", kind)
	putFalcoProcess(e.Process, put)
	put("container.id", e.Container.ID)
	put("container.name", e.Container.Name)
	image, tag := splitImage(e.Container.Image)
	put("container.image.repository", image)
	put("container.image.tag", tag)
	put("container.image.digest", e.Container.ImageDigest)
	put("k8s.ns.name", e.Container.Pod.Namespace)
	put("k8s.pod.name", e.Container.Pod.Name)
	put("k8s.pod.uid", e.Container.Pod.UID)
	put("fd.name", e.File.Path)
	if e.Network.Address != "" {
		put("fd.rip", e.Network.Address)
		put("fd.rport", e.Network.Port)
		put("fd.name", fmt.Sprintf("%s:%d", e.Network.Address, e.Network.Port))
	}
	source = "syscall"
	switch e.Kind {
	case sensors.KindKubernetesAudit:
		source = "k8s_audit"
		put("ka.user.name", strings.TrimPrefix(e.Actor, "kubernetes:"))
	case sensors.KindCloudAPICall:
		source = "aws_cloudtrail"
		put("ct.user.arn", strings.TrimPrefix(e.Actor, "aws:"))
	case sensors.KindSensorHealth:
		source = "internal"
	default:
	}
	return source, fields
}

func falcoTags(d sensors.Detection) []string {
	tags := []string{"stanch"}
	if t, ok := sensors.ATTACKTacticOf(d.Objective, d.Technique); ok {
		tags = append(tags, "mitre_"+strings.ReplaceAll(strings.ToLower(t.Name), " ", "_"))
	}
	if d.Technique != "" {
		tags = append(tags, d.Technique)
	}
	if d.Event.InContainer() {
		tags = append(tags, "container")
	}
	slices.Sort(tags)
	return tags
}

// splitImage splits a reference into repository and tag: the tag's colon comes after the last slash.
func splitImage(image string) (repository, tag string) {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return image[:i], image[i+1:]
	}
	return image, ""
}

// putFalcoProcess adds the fields of a process, if there is one.
func putFalcoProcess(p sensors.Process, put func(name string, v any)) {
	if p.PID == 0 {
		return
	}
	put("proc.pid", p.PID)
	put("proc.ppid", p.PPID)
	put("proc.name", p.ExeName())
	put("proc.exepath", p.Exe)
	put("proc.cmdline", strings.Join(p.Args, " "))
	put("proc.cwd", p.Cwd)
	put("proc.is_exe_upper_layer", p.ExeInUpperLayer)
	put("user.uid", p.UID)
	if p.TTY != "" {
		put("proc.tty", p.TTY)
	}
	if len(p.Ancestors) > 0 {
		put("proc.pname", p.Ancestors[0].ExeName())
		put("proc.pcmdline", strings.Join(p.Ancestors[0].Args, " "))
	}
}
