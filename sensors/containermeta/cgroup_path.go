package containermeta

import (
	"regexp"
	"strings"
)

// CgroupPath is the information that a cgroup path contains.
type CgroupPath struct {
	Runtime     string // "containerd", "cri-o", "docker", "podman", "stanch"; "" if the path does not say
	ContainerID string // "" for the cgroup of a pod and for a cgroup that belongs to no container
	PodUID      string // with dashes, except for a static pod's hash; "" outside of Kubernetes
	// ContainerPath and PodPath are the prefixes of the path that end at the cgroup of the container and of the pod.
	ContainerPath string
	PodPath       string
	// IsHostUnit reports whether the path belongs to a systemd unit or session of the host.
	IsHostUnit bool
}

var (
	hexIDPattern     = regexp.MustCompile(`^[0-9a-f]{32,64}$`)
	scopeNamePattern = regexp.MustCompile(`^(cri-containerd|crio|docker|libpod|nerdctl)-([0-9a-f]{12,64})\.scope$`)
	podDirPattern    = regexp.MustCompile(`^pod([0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|[0-9a-f]{32})$`)
	podSlicePattern  = regexp.MustCompile(
		`-pod([0-9a-fA-F]{8}_(?:[0-9a-fA-F]{4}_){3}[0-9a-fA-F]{12}|[0-9a-f]{32})\.slice$`,
	)
)

// runtimeOfPrefix returns the runtime that creates scopes with this prefix.
func runtimeOfPrefix(prefix string) string {
	switch prefix {
	case "cri-containerd", "nerdctl":
		return "containerd"
	case "crio":
		return "cri-o"
	case "docker":
		return "docker"
	case "libpod":
		return "podman"
	}
	return ""
}

// ParseCgroupPath parses the path of a cgroup below the root of cgroup v2, as the cgroupfs and systemd drivers of the
// common runtimes create them. It uses the path only and accesses no file.
func ParseCgroupPath(path string) CgroupPath {
	var p CgroupPath
	if len(path) > 4096 {
		return p
	}
	segments := strings.Split(strings.Trim(path, "/"), "/")
	if segments[0] == "" {
		return CgroupPath{IsHostUnit: true}
	}
	var at strings.Builder
	for i, s := range segments {
		at.WriteString("/" + s)
		if m := podDirPattern.FindStringSubmatch(s); m != nil && p.PodUID == "" {
			p.PodUID, p.PodPath = m[1], at.String()
			continue
		}
		if m := podSlicePattern.FindStringSubmatch(s); m != nil && p.PodUID == "" {
			p.PodUID, p.PodPath = strings.ReplaceAll(m[1], "_", "-"), at.String()
			continue
		}
		if m := scopeNamePattern.FindStringSubmatch(s); m != nil {
			p.Runtime, p.ContainerID, p.ContainerPath = runtimeOfPrefix(m[1]), m[2], at.String()
			return p
		}
		if hexIDPattern.MatchString(s) {
			switch {
			case p.PodUID != "": // the cgroupfs driver of the kubelet: the path does not contain the runtime
			case i > 0 && segments[i-1] == "docker":
				p.Runtime = "docker"
			case i > 0 && strings.HasPrefix(segments[i-1], "stanch-drill-"): // a container that a drill created
				p.Runtime = "stanch"
			default:
				continue
			}
			p.ContainerID, p.ContainerPath = s, at.String()
			return p
		}
		if crio, ok := strings.CutPrefix(s, "crio-"); ok && hexIDPattern.MatchString(crio) && p.PodUID != "" {
			p.Runtime, p.ContainerID, p.ContainerPath = "cri-o", crio, at.String()
			return p
		}
	}
	p.IsHostUnit = p.PodUID == "" && isHostUnit(segments)
	return p
}

// isHostUnit reports whether a path belongs to a systemd unit or session of the host.
func isHostUnit(segments []string) bool {
	switch segments[0] {
	case "init.scope", "system.slice", "user.slice", "machine.slice", "podruntime", "runtime.slice":
		return true
	}
	return strings.HasSuffix(segments[0], ".service") || strings.HasSuffix(segments[0], ".mount")
}
