package integrations

import (
	"fmt"
	"strconv"
	"strings"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// falcoFields are the output fields of an alert, by their names in Falco.
type falcoFields map[string]scalar

// firstValue returns the value of the first field that has one.
func (f falcoFields) firstValue(names ...string) string {
	for _, name := range names {
		if v := f[name]; v != "" {
			return string(v)
		}
	}
	return ""
}

// indexedValue returns a field with an index: `proc.aname[2]`, or `proc.aname_2` if Falcosidekick replaced the
// brackets.
func (f falcoFields) indexedValue(name string, n int) scalar {
	if v := f[fmt.Sprintf("%s[%d]", name, n)]; v != "" {
		return v
	}
	return f[fmt.Sprintf("%s_%d", name, n)]
}

// syscallEvent returns the event for a system call.
func (f falcoFields) syscallEvent() sensors.Event {
	call := syscallName(f.firstValue("evt.type", "syscall.type"))
	e := sensors.Event{Kind: kindOfSyscall(call), Process: f.processInfo(), Container: f.containerInfo()}
	e.Syscall = sensors.Syscall{Name: call, Failed: f["evt.failed"].bool() || strings.HasPrefix(f.firstValue("evt.res"),
		"E")}
	path := f.firstValue("fs.path.name", "fd.name", "evt.arg.path", "evt.arg.name")
	switch e.Kind {
	case sensors.KindFileOpen:
		e.File = sensors.File{
			Path: path, OpenedForWrite: f["evt.is_open_write"].bool() || strings.Contains(call, "link"),
			PathUnresolved: f.firstValue("fs.path.name", "fd.name") == "",
		}
	case sensors.KindFileDelete, sensors.KindChmod, sensors.KindMount:
		e.File = sensors.File{Path: path, OpenedForWrite: true, PathUnresolved: f.firstValue("fs.path.name", "fd.name") == ""}
	case sensors.KindExec:
		// A rule on dup detects a shell on a socket, so the connection is the relevant fact.
		if e.Network = f.networkInfo(); e.Network.Address != "" {
			e.Kind = sensors.KindConnect
		}
	default:
		e.Network = f.networkInfo()
	}
	if e.Kind == sensors.KindConnect && e.Network.Address == "" && strings.HasPrefix(path, "/") {
		e.Kind, e.File = sensors.KindUnixConnect, sensors.File{Path: path}
	}
	return e
}

func (f falcoFields) processInfo() sensors.Process {
	p := sensors.Process{
		PID: f["proc.pid"].uint32(), PPID: f["proc.ppid"].uint32(), NSPID: f["proc.vpid"].uint32(),
		UID: f["user.uid"].uint32(), EUID: f["user.uid"].uint32(), GID: f["group.gid"].uint32(),
		Name: f.firstValue("proc.name"), Exe: f.firstValue("proc.exepath"), Cwd: f.firstValue("proc.cwd"),
		TTY:             terminalName(f.firstValue("proc.tty")),
		ExeInUpperLayer: f["proc.is_exe_upper_layer"].bool(), ExeIsMemfd: f["proc.is_exe_from_memfd"].bool(),
		ExeInode: f["proc.exe_ino"].uint64(),
		Args:     strings.Fields(f.firstValue("proc.cmdline")),
	}
	if args := f.firstValue("proc.args"); len(p.Args) == 0 && args != "" {
		p.Args = append([]string{f.firstValue("proc.exe", "proc.name")}, strings.Fields(args)...)
	}
	for n := 1; n <= sensors.MaxAncestors; n++ {
		a := sensors.Ancestor{
			PID: f.indexedValue("proc.apid", n).uint32(), Name: string(f.indexedValue("proc.aname", n)),
			Exe:  string(f.indexedValue("proc.aexepath", n)),
			Args: strings.Fields(string(f.indexedValue("proc.acmdline", n))),
		}
		if n == 1 {
			if a.PID == 0 {
				a.PID = p.PPID
			}
			a.Name, a.Exe = orDefault(a.Name, f.firstValue("proc.pname")),
				orDefault(a.Exe, f.firstValue("proc.pexepath", "proc.pexe"))
			if len(a.Args) == 0 {
				a.Args = strings.Fields(f.firstValue("proc.pcmdline"))
			}
			if a.Name == "" && a.Exe == "" && len(a.Args) == 0 {
				a = sensors.Ancestor{}
			}
		}
		if a.Name == "" && a.Exe == "" && a.PID == 0 {
			break
		}
		p.Ancestors = append(p.Ancestors, a)
	}
	return p
}

// terminalName returns the name of a terminal from the kernel's device number, which Falco reports.
func terminalName(s string) string {
	n, err := strconv.ParseUint(s, 10, 32)
	switch {
	case err != nil:
		return s
	case n == 0:
		return ""
	case n>>8 >= 136 && n>>8 <= 143:
		return fmt.Sprintf("pts%d", (n>>8-136)<<8|n&0xff)
	}
	return "tty" + strconv.FormatUint(n&0xff, 10)
}

func (f falcoFields) networkInfo() sensors.Network {
	n := sensors.Network{Protocol: f.firstValue("fd.l4proto")}
	// The remote address is the destination. If only server and client are known, the server is.
	n.Address, n.Family = parseAddress(f.firstValue("fd.rip", "fd.sip"))
	n.Port = f["fd.rport"].port()
	if n.Port == 0 {
		n.Port = f["fd.sport"].port()
	}
	if _, far, ok := strings.Cut(f.firstValue("fd.name"), "->"); ok && n.Address == "" {
		if i := strings.LastIndexByte(far, ':'); i > 0 {
			n.Address, n.Family = parseAddress(far[:i])
			n.Port = scalar(far[i+1:]).port()
		}
	}
	n.Domain = strings.TrimSuffix(strings.ToLower(f.firstValue("fd.rip.name", "fd.sip.name")), ".")
	if n.Address == "" && n.Domain == "" {
		return sensors.Network{}
	}
	return n
}

func (f falcoFields) containerInfo() sensors.Container {
	c := sensors.Container{
		ID: f.firstValue("container.full_id", "container.id"), Name: f.firstValue("container.name"),
		Runtime:     f.firstValue("container.type"),
		Image:       f.firstValue("container.image.repository", "container.image"),
		ImageDigest: f.firstValue("container.image.digest"), StartedAt: f["container.start_ts"].nanoseconds(),
		Pod: sensors.Pod{
			Namespace: f.firstValue("k8s.ns.name", "k8smeta.ns.name"), Name: f.firstValue("k8s.pod.name", "k8smeta.pod.name"),
			UID: f.firstValue("k8s.pod.uid", "k8s.pod.full_sandbox_uid", "k8smeta.pod.uid"),
			IP:  f.firstValue("k8s.pod.ip", "k8smeta.pod.ip"), Labels: parseFalcoLabels(f.firstValue("k8s.pod.labels")),
		},
	}
	if tag := f.firstValue("container.image.tag"); tag != "" && c.Image != "" {
		c.Image += ":" + tag
	}
	if name := f.firstValue("k8smeta.deployment.name", "k8s.deployment.name"); name != "" {
		c.Workload = sensors.Workload{Kind: "Deployment", Name: name}
	}
	if c.ID == "host" {
		c = sensors.Container{}
	}
	return c
}

// parseFalcoLabels parses "app:web, tier:front".
func parseFalcoLabels(s string) map[string]string {
	if s == "" {
		return nil
	}
	labels := map[string]string{}
	for pair := range strings.SplitSeq(s, ",") {
		if key, value, ok := strings.Cut(strings.TrimSpace(pair), ":"); ok && key != "" {
			labels[key] = value
		}
	}
	return labels
}

// kubernetesEvent returns the event for a Kubernetes API request, from the k8saudit plugins.
func (f falcoFields) kubernetesEvent() sensors.Event {
	e := sensors.Event{Kind: sensors.KindKubernetesAudit, Audit: sensors.Audit{
		Verb: f.firstValue("ka.verb"), User: f.firstValue("ka.user.name"), ImpersonatedUser: f.firstValue("ka.impuser.name"),
		Resource: f.firstValue("ka.target.resource"), Subresource: f.firstValue("ka.target.subresource"),
		Namespace: f.firstValue("ka.target.namespace"), Name: f.firstValue("ka.target.name", "ka.resp.name"),
		StatusCode: int(f["ka.response.code"].port()),
		Decision:   f.firstValue("ka.auth.decision"), DecisionReason: f.firstValue("ka.auth.reason"),
		UserAgent: f.firstValue("ka.useragent"), Stage: f.firstValue("ka.stage"),
	}}
	a := &e.Audit
	a.ServiceAccount = serviceAccountOf(a.User)
	a.UserAgent, a.DecisionReason = truncate.Bytes(a.UserAgent, maxMessageBytes), truncate.Bytes(a.DecisionReason,
		maxMessageBytes)
	a.Pod.Images = parseFalcoList(f.firstValue("ka.req.pod.containers.image"))
	a.Binding.Role = f.firstValue("ka.req.binding.role")
	if command := f.firstValue("ka.uri.param[command]"); command != "" {
		a.Exec.Command = []string{truncate.Bytes(command, maxTextBytes)}
	}
	if a.User != "" {
		e.Actor = "kubernetes:" + a.User
	}
	// A request about one pod is assigned to that pod, so that it joins the pod's incident.
	if a.Resource == "pods" && a.Name != "" && a.Verb != "delete" {
		e.Container.Pod = sensors.Pod{Namespace: a.Namespace, Name: a.Name}
	}
	return e
}

// parseFalcoList parses a list in Falco's format, "(a,b)", or a single value.
func parseFalcoList(s string) []string {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "("), ")")
	if s == "" {
		return nil
	}
	out := strings.Split(s, ",")
	out = out[:min(len(out), maxLabels)]
	for i := range out {
		out[i] = truncate.Bytes(strings.TrimSpace(out[i]), maxMessageBytes)
	}
	return out
}

// cloudTrailEvent returns the event for an AWS API call, from the cloudtrail plugin.
func (f falcoFields) cloudTrailEvent() sensors.Event {
	e := sensors.Event{Kind: sensors.KindCloudAPICall, Cloud: sensors.Cloud{
		Provider: "aws", Service: f.firstValue("ct.src"), EventName: f.firstValue("ct.name"),
		Region: f.firstValue("ct.region"), Account: f.firstValue("ct.user.accountid"),
		Principal: f.firstValue("ct.user.arn"), PrincipalID: f.firstValue("ct.user.principalid"),
		PrincipalType: f.firstValue("ct.user.identitytype"),
		SourceIP:      f.firstValue("ct.srcip"), UserAgent: truncate.Bytes(f.firstValue("ct.useragent"), maxMessageBytes),
		ErrorCode: f.firstValue("ct.error"), ReadOnly: f["ct.readonly"].bool(),
	}}
	c := &e.Cloud
	if c.Principal != "" {
		e.Actor = "aws:" + c.Principal
	}
	c.Role, c.SessionName = roleOf(c.Principal)
	if user := f.firstValue("ct.user"); c.Principal == "" && user != "" { // root, and users without an ARN
		c.Principal = strings.TrimPrefix(c.Account+"/"+user, "/")
		e.Actor = "aws:" + c.Principal
	}
	if bucket := f.firstValue("s3.bucket"); bucket != "" {
		c.Resources = []string{truncate.Bytes("arn:aws:s3:::"+bucket, maxMessageBytes)}
	}
	return e
}
