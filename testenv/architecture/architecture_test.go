// Package architecture holds the shape of the project: which package may know which.
package architecture_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type goPackage struct {
	ImportPath string
	Doc        string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

func listPackages(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Doc,Imports,Deps,GoFiles"},
		args...)...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stderr = os.Stderr
	raw, err := cmd.Output()
	require.NoError(t, err)
	var out []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(raw)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			require.NoError(t, err)
		}
		out = append(out, p)
	}
}

// layers in the order in which they may know each other: a package imports its own layer and those before it.
var layers = []string{
	"stanch/bpf", "stanch/sensors", "stanch/playbooks", "stanch/activities", "stanch/workflows",
	"stanch/worker", "stanch/cmd",
}

func layerIndex(path string) int {
	return slices.IndexFunc(layers, func(l string) bool { return path == l || strings.HasPrefix(path, l+"/") })
}

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range listPackages(t, "./...") {
		own := layerIndex(p.ImportPath)
		if own < 0 {
			continue
		}
		for _, i := range p.Imports {
			if !strings.HasPrefix(i, "stanch/") {
				continue
			}
			require.LessOrEqual(t, layerIndex(i), own, "%s imports %s", p.ImportPath, i)
			require.False(t, strings.HasPrefix(i, "stanch/testenv"), "%s imports %s", p.ImportPath, i)
			if i == "stanch/bpf" {
				require.Equal(t, "stanch/sensors/probe", p.ImportPath, "only the probe uses bpf")
			}
		}
	}
}

func TestEBPFAndTemporalServerHaveOneImporter(t *testing.T) {
	for _, p := range listPackages(t, "./...") {
		for _, i := range p.Imports {
			if strings.HasPrefix(i, "github.com/cilium/ebpf") {
				require.True(t, strings.HasPrefix(p.ImportPath, "stanch/sensors/probe") || p.ImportPath == "stanch/bpf",
					"%s imports %s", p.ImportPath, i)
			}
			if strings.HasPrefix(i, "go.temporal.io/server") {
				require.True(t, p.ImportPath == "stanch/worker/embeddedtemporal" || strings.HasPrefix(p.ImportPath,
					"stanch/testenv/"), "%s imports %s", p.ImportPath, i)
			}
		}
	}
}

func TestSensorsAndPlaybooksHaveNoHeavyDependencies(t *testing.T) {
	for _, p := range listPackages(t, "./sensors", "./sensors/rules", "./sensors/attestation", "./sensors/integrations",
		"./playbooks") {
		for _, d := range p.Deps {
			for _, foreign := range []string{"go.temporal.io/", "k8s.io/", "github.com/cilium/ebpf"} {
				require.False(t, strings.HasPrefix(d, foreign), "%s depends on %s", p.ImportPath, d)
			}
		}
	}
}

func TestSensorLinksNeitherTemporalNorKubernetesClient(t *testing.T) {
	for _, p := range listPackages(t, "./cmd/stanch-sensor") {
		for _, d := range p.Deps {
			require.False(t, strings.HasPrefix(d, "go.temporal.io/") || strings.HasPrefix(d, "k8s.io/client-go"),
				"the sensor links %s", d)
		}
	}
}

func TestEveryPackageHasComment(t *testing.T) {
	for _, p := range listPackages(t, "./...") {
		if len(p.GoFiles) > 0 && !strings.HasSuffix(p.ImportPath, "/gatewaypb") {
			require.NotEmpty(t, p.Doc, "%s has no package comment", p.ImportPath)
		}
	}
}

func TestModuleHasNoReplaceDirectives(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	require.NoError(t, err)
	require.NotContains(t, string(raw), "replace ")
}
