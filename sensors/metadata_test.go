package sensors_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
)

func TestPodMetadataOfDetectionsIsBounded(t *testing.T) {
	labels, annotations := map[string]string{}, map[string]string{}
	for n := range 5000 {
		labels[fmt.Sprintf("a%04d", n)] = "x"
		annotations[fmt.Sprintf("a%04d", n)] = strings.Repeat("<", 1000)
	}
	labels["pod-template-hash"] = "5d8f9c7b6d"
	annotations["stanch.dev/egress"] = "10.0.0.0/8"
	kept := sensors.LimitLabels(labels)
	require.Len(t, kept, 64)
	require.Equal(t, sensors.Workload{Kind: "Deployment", Name: "shop"},
		sensors.InferWorkload("shop-5d8f9c7b6d-x7k2p", kept), "it still belongs to the same workload")
	require.Equal(t, kept, sensors.LimitLabels(labels), "the selection is deterministic")
	got := sensors.LimitAnnotations(annotations)
	require.Equal(t, "10.0.0.0/8", got["stanch.dev/egress"])
	size := 0
	for k, v := range got {
		size += len(k) + len(v)
	}
	require.LessOrEqual(t, size, 16<<10)
	require.Contains(t, got, "a0000", "a user's rule may read it")

	few := map[string]string{"app": "shop"}
	require.Equal(t, few, sensors.LimitLabels(few))
	require.Nil(t, sensors.LimitLabels(nil))
	require.Nil(t, sensors.LimitLabels(map[string]string{"app": strings.Repeat("x", 64)}), "not a valid Kubernetes label")
}
