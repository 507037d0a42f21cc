package rules

import (
	"path"

	"stanch/sensors"
)

func baseName(s string) string { return path.Base(s) }

// The tables of frequently used fields, without reflection. A test compares them with the fields that conditions can
// read. textField returns the getter for a string field, or nil.

func textField(name string) func(*conditionEnv) string {
	switch name {
	case "exe":
		return (*conditionEnv).exeName
	case "parent":
		return (*conditionEnv).parentName
	case "command":
		return (*conditionEnv).commandLine
	case "actor":
		return func(v *conditionEnv) string { return v.event.Actor }
	case "process.name":
		return func(v *conditionEnv) string { return v.event.Process.Name }
	case "process.exe":
		return func(v *conditionEnv) string { return v.event.Process.Exe }
	case "process.cwd":
		return func(v *conditionEnv) string { return v.event.Process.Cwd }
	case "process.tty":
		return func(v *conditionEnv) string { return v.event.Process.TTY }
	case "file.path":
		return func(v *conditionEnv) string { return v.event.File.Path }
	case "file.sensitive_class":
		return func(v *conditionEnv) string { return v.event.File.SensitiveClass }
	case "syscall.name":
		return func(v *conditionEnv) string { return v.event.Syscall.Name }
	case "syscall.detail":
		return func(v *conditionEnv) string { return v.event.Syscall.Detail }
	case "baseline.reason":
		return func(v *conditionEnv) string { return v.event.Baseline.Reason }
	case "network.protocol":
		return func(v *conditionEnv) string { return v.event.Network.Protocol }
	case "network.family":
		return func(v *conditionEnv) string { return v.event.Network.Family }
	case "network.address":
		return func(v *conditionEnv) string { return v.event.Network.Address }
	case "network.domain":
		return func(v *conditionEnv) string { return v.event.Network.Domain }
	case "container.id":
		return func(v *conditionEnv) string { return v.event.Container.ID }
	case "container.name":
		return func(v *conditionEnv) string { return v.event.Container.Name }
	case "container.runtime":
		return func(v *conditionEnv) string { return v.event.Container.Runtime }
	case "container.cgroup_path":
		return func(v *conditionEnv) string { return v.event.Container.CgroupPath }
	case "container.image":
		return func(v *conditionEnv) string { return v.event.Container.Image }
	case "container.image_digest":
		return func(v *conditionEnv) string { return v.event.Container.ImageDigest }
	case "container.pod.namespace":
		return func(v *conditionEnv) string { return v.event.Container.Pod.Namespace }
	case "container.pod.name":
		return func(v *conditionEnv) string { return v.event.Container.Pod.Name }
	case "container.pod.uid":
		return func(v *conditionEnv) string { return v.event.Container.Pod.UID }
	case "container.pod.ip":
		return func(v *conditionEnv) string { return v.event.Container.Pod.IP }
	case "container.pod.service_account":
		return func(v *conditionEnv) string { return v.event.Container.Pod.ServiceAccount }
	case "container.workload.kind":
		return func(v *conditionEnv) string { return v.event.Container.Workload.Kind }
	case "container.workload.name":
		return func(v *conditionEnv) string { return v.event.Container.Workload.Name }
	}
	return requestTextField(name)
}

func mapField(name string) func(*conditionEnv) map[string]string {
	switch name {
	case "container.pod.labels":
		return func(v *conditionEnv) map[string]string { return v.event.Container.Pod.Labels }
	case "container.pod.annotations":
		return func(v *conditionEnv) map[string]string { return v.event.Container.Pod.Annotations }
	case "audit.annotations":
		return func(v *conditionEnv) map[string]string { return v.event.Audit.Annotations }
	}
	return nil
}

func boolField(name string) func(*conditionEnv) bool {
	switch name {
	case "in_container":
		return func(v *conditionEnv) bool { return v.InContainer }
	case "process.args_truncated":
		return func(v *conditionEnv) bool { return v.event.Process.ArgsTruncated }
	case "process.upper_layer":
		return func(v *conditionEnv) bool { return v.event.Process.ExeInUpperLayer }
	case "process.memfd":
		return func(v *conditionEnv) bool { return v.event.Process.ExeIsMemfd }
	case "process.exe_deleted":
		return func(v *conditionEnv) bool { return v.event.Process.ExeDeleted }
	case "process.setid":
		return func(v *conditionEnv) bool { return v.event.Process.HasSetIDBits }
	case "process.privileges_gained":
		return func(v *conditionEnv) bool { return v.event.Process.PrivilegesGained }
	case "process.execed_into":
		return func(v *conditionEnv) bool { return v.event.Process.ExecedInto }
	case "file.opened_for_write":
		return func(v *conditionEnv) bool { return v.event.File.OpenedForWrite }
	case "file.path_unresolved":
		return func(v *conditionEnv) bool { return v.event.File.PathUnresolved }
	case "syscall.failed":
		return func(v *conditionEnv) bool { return v.event.Syscall.Failed }
	case "network.denied":
		return func(v *conditionEnv) bool { return v.event.Network.Denied }
	case "network.kubernetes_api":
		return func(v *conditionEnv) bool { return v.event.Network.KubernetesAPI }
	case "baseline.learning_complete":
		return func(v *conditionEnv) bool { return v.event.Baseline.LearningComplete }
	case "baseline.new_exe":
		return func(v *conditionEnv) bool { return v.event.Baseline.NewExe }
	case "baseline.new_destination":
		return func(v *conditionEnv) bool { return v.event.Baseline.NewDestination }
	case "container.pod.host_network":
		return func(v *conditionEnv) bool { return v.event.Container.Pod.HostNetwork }
	}
	return requestBoolField(name)
}

func numberField(name string) func(*conditionEnv) int {
	switch name {
	case "exit_code":
		return func(v *conditionEnv) int { return v.event.ExitCode }
	case "count":
		return func(v *conditionEnv) int { return v.event.Count }
	case "network.port":
		return func(v *conditionEnv) int { return int(v.event.Network.Port) }
	}
	if get := processNumberField(name); get != nil {
		return func(v *conditionEnv) int { return get(&v.event.Process) }
	}
	// A 64-bit mask becomes an int with the same bits, as in expr.
	switch name {
	case "syscall.flags":
		return func(v *conditionEnv) int { return int(v.event.Syscall.Flags) }
	case "syscall.pid":
		return func(v *conditionEnv) int { return int(v.event.Syscall.PID) }
	case "container.cgroup_id":
		return func(v *conditionEnv) int { return int(v.event.Container.CgroupID) }
	case "container.pod_cgroup_id":
		return func(v *conditionEnv) int { return int(v.event.Container.PodCgroupID) }
	}
	return requestNumberField(name)
}

func processNumberField(name string) func(*sensors.Process) int {
	switch name {
	case "process.pid":
		return func(p *sensors.Process) int { return int(p.PID) }
	case "process.ppid":
		return func(p *sensors.Process) int { return int(p.PPID) }
	case "process.uid":
		return func(p *sensors.Process) int { return int(p.UID) }
	case "process.euid":
		return func(p *sensors.Process) int { return int(p.EUID) }
	case "process.gid":
		return func(p *sensors.Process) int { return int(p.GID) }
	case "process.ns_pid":
		return func(p *sensors.Process) int { return int(p.NSPID) }
	case "process.stdio_sockets":
		return func(p *sensors.Process) int { return int(p.StdioSockets) }
	case "process.capabilities":
		return func(p *sensors.Process) int { return int(p.Capabilities) }
	case "process.start_ns":
		return func(p *sensors.Process) int { return int(p.StartNS) }
	case "process.inode":
		return func(p *sensors.Process) int { return int(p.ExeInode) }
	case "process.device":
		return func(p *sensors.Process) int { return int(p.ExeDevice) }
	}
	return nil
}
