package sensors

import (
	"maps"
	"slices"
	"strings"
)

// The author of a pod chooses its labels and annotations, up to a megabyte of them, and each detection of the pod
// contains them. Without these limits, a pod could make its detections too large to be sent.
const (
	maxLabelKeyBytes   = 253 + 1 + 63 // the limit of Kubernetes
	maxLabelValueBytes = 63
	maxLabels          = 64
	maxMetadataBytes   = 16 << 10 // total bytes of the keys and values of one map
)

// stanchAnnotationPrefix is the prefix of the annotations that Stanch itself reads.
const stanchAnnotationPrefix = "stanch.dev/"

// workloadLabelKeys returns the labels from which InferWorkload determines the owner of a pod. Without them, a
// detection would be added to the wrong incident.
func workloadLabelKeys() []string {
	return []string{
		"pod-template-hash", "statefulset.kubernetes.io/pod-name", "batch.kubernetes.io/job-name", "controller-revision-hash",
		"pod-template-generation",
	}
}

// LimitLabels returns a copy of a pod's labels, at most 64 labels and 16 KiB. It keeps the labels that identify the
// workload first, then the others in the order of their keys, and drops a label that is longer than Kubernetes allows.
// It returns nil if nothing is left.
func LimitLabels(labels map[string]string) map[string]string {
	return limitMap(labels, func(key string) bool { return slices.Contains(workloadLabelKeys(), key) },
		func(key, value string) bool {
			return len(key) <= maxLabelKeyBytes && len(value) <= maxLabelValueBytes
		})
}

// LimitAnnotations returns a copy of a pod's annotations, at most 64 annotations and 16 KiB. It keeps the annotations
// that Stanch reads first, then the others in the order of their keys, so that the user's rules can match them. It
// returns nil if nothing is left.
func LimitAnnotations(annotations map[string]string) map[string]string {
	return limitMap(annotations, func(key string) bool { return strings.HasPrefix(key, stanchAnnotationPrefix) },
		func(string, string) bool { return true })
}

func limitMap(all map[string]string, first func(key string) bool, fits func(key, value string) bool) map[string]string {
	keys := slices.Sorted(maps.Keys(all))
	slices.SortStableFunc(keys, func(a, b string) int {
		switch {
		case first(a) && !first(b):
			return -1
		case first(b) && !first(a):
			return 1
		}
		return 0
	})
	var out map[string]string
	left := maxMetadataBytes
	for _, key := range keys {
		value := all[key]
		if len(key)+len(value) > left || !fits(key, value) {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = value
		if left -= len(key) + len(value); len(out) == maxLabels {
			break
		}
	}
	return out
}
