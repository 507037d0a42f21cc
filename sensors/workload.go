package sensors

import (
	"regexp"
	"strings"
)

var (
	generatedPodName   = regexp.MustCompile(`^(.+)-[bcdfghjklmnpqrstvwxz2456789]{5}$`)
	statefulSetPodName = regexp.MustCompile(`^(.+)-\d+$`)
)

// InferWorkload returns the owner of a pod, determined from the pod's name and labels alone, which controllers set.
// Incidents are grouped by it until the API server confirms the owner, and where no API server is available. It
// returns the pod itself if no controller is recognized.
func InferWorkload(pod string, labels map[string]string) Workload {
	if hash := labels["pod-template-hash"]; hash != "" {
		if m := generatedPodName.FindStringSubmatch(pod); m != nil {
			if name, ok := strings.CutSuffix(m[1], "-"+hash); ok && name != "" {
				return Workload{Kind: "Deployment", Name: name}
			}
		}
	}
	if labels["statefulset.kubernetes.io/pod-name"] == pod {
		if m := statefulSetPodName.FindStringSubmatch(pod); m != nil {
			return Workload{Kind: "StatefulSet", Name: m[1]}
		}
	}
	if job := labels["batch.kubernetes.io/job-name"]; job != "" {
		return Workload{Kind: "Job", Name: job}
	}
	if labels["controller-revision-hash"] != "" && labels["pod-template-generation"] != "" {
		if m := generatedPodName.FindStringSubmatch(pod); m != nil {
			return Workload{Kind: "DaemonSet", Name: m[1]}
		}
	}
	return Workload{Kind: "Pod", Name: pod}
}
