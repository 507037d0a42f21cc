package sensors

import (
	"maps"
	"slices"
	"strings"
)

// Whoever makes a pod chooses its labels and annotations, up to a megabyte of them, and they are in each of its
// detections: without a bound a pod could make its detections too large to be sent.
const (
	maxLabelKeyBytes   = 253 + 1 + 63 // as Kubernetes bounds it
	maxLabelValueBytes = 63
	maxLabels          = 64
	maxMetadataBytes   = 16 << 10 // keys and values of one map together, in bytes
)

// stanchAnnotationPrefix begins the annotations that Stanch itself reads.
const stanchAnnotationPrefix = "stanch.dev/"

// workloadLabelKeys are those by which InferWorkload tells who owns a pod: without them its incident would be another's.
func workloadLabelKeys() []string {
	return []string{
		"pod-template-hash", "statefulset.kubernetes.io/pod-name", "batch.kubernetes.io/job-name", "controller-revision-hash", "pod-template-generation",
	}
}

// LimitLabels copies a pod's labels, as many as a detection can carry: first those that say whose it is, then the others
// in the order of their names.
func LimitLabels(labels map[string]string) map[string]string {
	return limitMap(labels, func(key string) bool { return slices.Contains(workloadLabelKeys(), key) }, func(key, value string) bool {
		return len(key) <= maxLabelKeyBytes && len(value) <= maxLabelValueBytes
	})
}

// LimitAnnotations copies a pod's annotations, as many as a detection can carry: first those that Stanch reads, then the
// others in the order of their names, for rules of the user's.
func LimitAnnotations(annotations map[string]string) map[string]string {
	return limitMap(annotations, func(key string) bool { return strings.HasPrefix(key, stanchAnnotationPrefix) }, func(string, string) bool { return true })
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
