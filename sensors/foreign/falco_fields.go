package foreign

import (
	"fmt"
	"strconv"
	"strings"

	"stanch/sensors"
)

// falcoFields are the output fields of an alert, by Falco's names.
type falcoFields map[string]scalar

// get is the first of the fields that has a value.
func (f falcoFields) get(names ...string) string {
	for _, name := range names {
		if v := f[name]; v != "" {
			return string(v)
		}
	}
	return ""
}

// nth is a field with an index: `proc.aname[2]`, or `proc.aname_2` where Falcosidekick replaces the brackets.
func (f falcoFields) nth(name string, n int) scalar {
	if v := f[fmt.Sprintf("%s[%d]", name, n)]; v != "" {
		return v
	}
	return f[fmt.Sprintf("%s_%d", name, n)]
}

// syscall is an event of the kernel.
func (f falcoFields) syscall() sensors.Event {
	call := callName(f.get("evt.type", "syscall.type"))
	e := sensors.Event{Kind: kindOf(call), Process: f.process(), Container: f.container()}
	e.Call = sensors.Call{Name: call, Failed: f["evt.failed"].bool() || strings.HasPrefix(f.get("evt.res"), "E")}
	path := f.get("fs.path.name", "fd.name", "evt.arg.path", "evt.arg.name")
	switch e.Kind {
	case sensors.KindOpen:
		e.File = sensors.File{Path: path, Write: f["evt.is_open_write"].bool() || strings.Contains(call, "link"), Asked: f.get("fs.path.name", "fd.name") == ""}
	case sensors.KindDelete, sensors.KindChmod, sensors.KindMount:
		e.File = sensors.File{Path: path, Write: true, Asked: f.get("fs.path.name", "fd.name") == ""}
	case sensors.KindExec:
		// dup is how a shell is put on a socket: the connection is what there is to say.
		if e.Network = f.network(); e.Network.Address != "" {
			e.Kind = sensors.KindConnect
		}
	default:
		e.Network = f.network()
	}
	if e.Kind == sensors.KindConnect && e.Network.Address == "" && strings.HasPrefix(path, "/") {
		e.Kind, e.File = sensors.KindUnix, sensors.File{Path: path}
	}
	return e
}

func (f falcoFields) process() sensors.Process {
	p := sensors.Process{
		PID: f["proc.pid"].uint32(), PPID: f["proc.ppid"].uint32(), NSPID: f["proc.vpid"].uint32(), UID: f["user.uid"].uint32(), EUID: f["user.uid"].uint32(), GID: f["group.gid"].uint32(),
		Name: f.get("proc.name"), Exe: f.get("proc.exepath"), Cwd: f.get("proc.cwd"), TTY: terminal(f.get("proc.tty")),
		UpperLayer: f["proc.is_exe_upper_layer"].bool(), Memfd: f["proc.is_exe_from_memfd"].bool(), Inode: f["proc.exe_ino"].uint64(),
		Args: strings.Fields(f.get("proc.cmdline")),
	}
	if args := f.get("proc.args"); len(p.Args) == 0 && args != "" {
		p.Args = append([]string{f.get("proc.exe", "proc.name")}, strings.Fields(args)...)
	}
	for n := 1; n <= sensors.MaxAncestors; n++ {
		a := sensors.Ancestor{
			PID: f.nth("proc.apid", n).uint32(), Name: string(f.nth("proc.aname", n)), Exe: string(f.nth("proc.aexepath", n)),
			Args: strings.Fields(string(f.nth("proc.acmdline", n))),
		}
		if n == 1 {
			if a.PID == 0 {
				a.PID = p.PPID
			}
			a.Name, a.Exe = orElse(a.Name, f.get("proc.pname")), orElse(a.Exe, f.get("proc.pexepath", "proc.pexe"))
			if len(a.Args) == 0 {
				a.Args = strings.Fields(f.get("proc.pcmdline"))
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

// terminal names a terminal from the kernel's device number, as Falco gives it.
func terminal(s string) string {
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

func (f falcoFields) network() sensors.Network {
	n := sensors.Network{Protocol: f.get("fd.l4proto")}
	// A connection's far end is the remote one; where only server and client are given, whoever connects is the client.
	n.Address, n.Family = address(f.get("fd.rip", "fd.sip"))
	n.Port = f["fd.rport"].port()
	if n.Port == 0 {
		n.Port = f["fd.sport"].port()
	}
	if _, far, ok := strings.Cut(f.get("fd.name"), "->"); ok && n.Address == "" {
		if i := strings.LastIndexByte(far, ':'); i > 0 {
			n.Address, n.Family = address(far[:i])
			n.Port = scalar(far[i+1:]).port()
		}
	}
	n.Domain = strings.TrimSuffix(strings.ToLower(f.get("fd.rip.name", "fd.sip.name")), ".")
	if n.Address == "" && n.Domain == "" {
		return sensors.Network{}
	}
	return n
}

func (f falcoFields) container() sensors.Container {
	c := sensors.Container{
		ID: f.get("container.full_id", "container.id"), Name: f.get("container.name"), Runtime: f.get("container.type"),
		Image: f.get("container.image.repository", "container.image"), ImageDigest: f.get("container.image.digest"), StartedAt: f["container.start_ts"].nanoseconds(),
		Pod: sensors.Pod{
			Namespace: f.get("k8s.ns.name", "k8smeta.ns.name"), Name: f.get("k8s.pod.name", "k8smeta.pod.name"), UID: f.get("k8s.pod.uid", "k8s.pod.full_sandbox_uid", "k8smeta.pod.uid"),
			IP: f.get("k8s.pod.ip", "k8smeta.pod.ip"), Labels: falcoLabels(f.get("k8s.pod.labels")),
		},
	}
	if tag := f.get("container.image.tag"); tag != "" && c.Image != "" {
		c.Image += ":" + tag
	}
	if name := f.get("k8smeta.deployment.name", "k8s.deployment.name"); name != "" {
		c.Workload = sensors.Workload{Kind: "Deployment", Name: name}
	}
	if c.ID == "host" {
		c = sensors.Container{}
	}
	return c
}

// falcoLabels reads "app:web, tier:front".
func falcoLabels(s string) map[string]string {
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

// kubernetes is a request to the Kubernetes API, from the k8saudit plugins.
func (f falcoFields) kubernetes() sensors.Event {
	e := sensors.Event{Kind: sensors.KindAudit, Audit: sensors.Audit{
		Verb: f.get("ka.verb"), User: f.get("ka.user.name"), Impersonated: f.get("ka.impuser.name"), Resource: f.get("ka.target.resource"), Subresource: f.get("ka.target.subresource"),
		Namespace: f.get("ka.target.namespace"), Name: f.get("ka.target.name", "ka.resp.name"), Code: int(f["ka.response.code"].port()),
		Decision: f.get("ka.auth.decision"), DecisionReason: f.get("ka.auth.reason"), UserAgent: f.get("ka.useragent"), Stage: f.get("ka.stage"),
	}}
	a := &e.Audit
	a.ServiceAccount = serviceAccountOf(a.User)
	a.UserAgent, a.DecisionReason = shorten(a.UserAgent, maxSentence), shorten(a.DecisionReason, maxSentence)
	a.Pod.Images = listed(f.get("ka.req.pod.containers.image"))
	a.Binding.Role = f.get("ka.req.binding.role")
	if command := f.get("ka.uri.param[command]"); command != "" {
		a.Exec.Command = []string{shorten(command, maxText)}
	}
	if a.User != "" {
		e.Actor = "kubernetes:" + a.User
	}
	// A request about one pod is about that pod: its incident is the pod's.
	if a.Resource == "pods" && a.Name != "" && a.Verb != "delete" {
		e.Container.Pod = sensors.Pod{Namespace: a.Namespace, Name: a.Name}
	}
	return e
}

// listed reads a list as Falco writes one: "(a,b)", or one value.
func listed(s string) []string {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "("), ")")
	if s == "" {
		return nil
	}
	out := strings.Split(s, ",")
	out = out[:min(len(out), maxLabels)]
	for i := range out {
		out[i] = shorten(strings.TrimSpace(out[i]), maxSentence)
	}
	return out
}

// cloudTrail is a call to AWS, from the cloudtrail plugin.
func (f falcoFields) cloudTrail() sensors.Event {
	e := sensors.Event{Kind: sensors.KindCloud, Cloud: sensors.Cloud{
		Provider: "aws", Service: f.get("ct.src"), Event: f.get("ct.name"), Region: f.get("ct.region"), Account: f.get("ct.user.accountid"),
		Principal: f.get("ct.user.arn"), PrincipalID: f.get("ct.user.principalid"), PrincipalType: f.get("ct.user.identitytype"),
		SourceIP: f.get("ct.srcip"), UserAgent: shorten(f.get("ct.useragent"), maxSentence), Error: f.get("ct.error"), ReadOnly: f["ct.readonly"].bool(),
	}}
	c := &e.Cloud
	if c.Principal != "" {
		e.Actor = "aws:" + c.Principal
	}
	c.Role, c.Session = roleOf(c.Principal)
	if user := f.get("ct.user"); c.Principal == "" && user != "" { // root and users without an ARN
		c.Principal = strings.TrimPrefix(c.Account+"/"+user, "/")
		e.Actor = "aws:" + c.Principal
	}
	if bucket := f.get("s3.bucket"); bucket != "" {
		c.Resources = []string{shorten("arn:aws:s3:::"+bucket, maxSentence)}
	}
	return e
}
