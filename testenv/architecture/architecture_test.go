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

// listProject returns the packages of the project. It fails if a layer or the tests' environment is missing, because
// the tests would pass without having looked at anything.
func listProject(t *testing.T) []goPackage {
	t.Helper()
	all := listPackages(t, "./...")
	for _, layer := range append(slices.Clone(layers), "stanch/testenv") {
		require.True(t, slices.ContainsFunc(all, func(p goPackage) bool { return isIn(p.ImportPath, layer) }),
			"no package in %s", layer)
	}
	return all
}

// layers in the order in which they may know each other: a package imports its own layer and those before it. The chart
// and the making of images know nothing of the product; the command that builds the images is beside those of cmd.
var layers = []string{
	"stanch/bpf", "stanch/sensors", "stanch/playbooks", "stanch/activities", "stanch/workflows",
	"stanch/deploy/chart", "stanch/deploy/image", "stanch/worker", "stanch/cmd", "stanch/deploy/images",
}

// isIn reports whether a package is the root or below it.
func isIn(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func layerIndex(path string) int {
	return slices.IndexFunc(layers, func(l string) bool { return isIn(path, l) })
}

// A check returns what violates a rule of the architecture: one sentence each.
type check func(all []goPackage) []string

// violations returns what a check of each import of each package finds.
func violations(all []goPackage, check func(p goPackage, imported string) bool, problem string) []string {
	var out []string
	for _, p := range all {
		for _, i := range p.Imports {
			if check(p, i) {
				out = append(out, p.ImportPath+problem+i)
			}
		}
	}
	return out
}

// wrongWayImports finds imports of a later layer, or of the tests' environment, in the product.
func wrongWayImports(all []goPackage) []string {
	return violations(all, func(p goPackage, i string) bool {
		own := layerIndex(p.ImportPath)
		if own < 0 || !isIn(i, "stanch") {
			return false
		}
		if isIn(p.ImportPath, "stanch/deploy/chart") || isIn(p.ImportPath, "stanch/deploy/image") {
			return true
		}
		isCommand := isIn(i, "stanch/cmd") || isIn(i, "stanch/deploy/images")
		return layerIndex(i) > own || isIn(i, "stanch/testenv") || isCommand && i != p.ImportPath ||
			i == "stanch/bpf" && p.ImportPath != "stanch/sensors/probe"
	}, " must not import ")
}

// extraImporters finds importers of the kernel library and of the Temporal server other than the one of each.
func extraImporters(all []goPackage) []string {
	return violations(all, func(p goPackage, i string) bool {
		switch {
		case isIn(i, "github.com/cilium/ebpf"):
			return !isIn(p.ImportPath, "stanch/sensors/probe") && p.ImportPath != "stanch/bpf"
		case isIn(i, "go.temporal.io/server"):
			return p.ImportPath != "stanch/worker/embeddedtemporal" && !isIn(p.ImportPath, "stanch/testenv")
		}
		return false
	}, " must not import ")
}

// heavyDependencies returns a check for packages that depend on one of the modules, directly or not.
func heavyDependencies(modules ...string) check {
	return func(all []goPackage) []string {
		var out []string
		for _, p := range all {
			for _, d := range p.Deps {
				if slices.ContainsFunc(modules, func(m string) bool { return isIn(d, m) }) {
					out = append(out, p.ImportPath+" must not depend on "+d)
				}
			}
		}
		return out
	}
}

// missingComments finds packages without a comment. Generated code has none.
func missingComments(all []goPackage) []string {
	var out []string
	for _, p := range all {
		if len(p.GoFiles) > 0 && p.Doc == "" && !strings.HasSuffix(p.ImportPath, "/gatewaypb") {
			out = append(out, p.ImportPath+" has no package comment")
		}
	}
	return out
}

var (
	lightPackages = heavyDependencies("go.temporal.io", "k8s.io", "github.com/cilium/ebpf")
	lightSensor   = heavyDependencies("go.temporal.io", "k8s.io/client-go")
)

func TestImportsGoOneWay(t *testing.T) {
	require.Empty(t, wrongWayImports(listProject(t)))
}

func TestEBPFAndTemporalServerHaveOneImporter(t *testing.T) {
	all := listProject(t)
	require.Empty(t, extraImporters(all))
	for importer, imported := range map[string]string{
		"stanch/sensors/probe": "github.com/cilium/ebpf", "stanch/worker/embeddedtemporal": "go.temporal.io/server/temporal",
	} {
		require.True(t, slices.ContainsFunc(all, func(p goPackage) bool {
			return p.ImportPath == importer && slices.Contains(p.Imports, imported)
		}), "%s no longer imports %s", importer, imported)
	}
}

func TestSensorsAndPlaybooksHaveNoHeavyDependencies(t *testing.T) {
	light := listPackages(t, "./sensors", "./sensors/rules", "./sensors/attestation", "./sensors/integrations",
		"./playbooks")
	require.Len(t, light, 5)
	for _, p := range light {
		require.NotEmpty(t, p.Deps, p.ImportPath)
	}
	require.Empty(t, lightPackages(light))
}

func TestSensorLinksNeitherTemporalNorKubernetesClient(t *testing.T) {
	sensor := listPackages(t, "./cmd/stanch-sensor")
	require.Len(t, sensor, 1)
	require.Contains(t, sensor[0].Deps, "stanch/sensors/agent", "the dependencies are not complete")
	require.Empty(t, lightSensor(sensor))
}

func TestEveryPackageHasComment(t *testing.T) {
	require.Empty(t, missingComments(listProject(t)))
}

// Each check finds a violation that was made for it.
func TestChecksFindViolations(t *testing.T) {
	importing := func(path, imported string) goPackage {
		return goPackage{ImportPath: path, Imports: []string{"fmt", imported}, Deps: []string{"fmt", imported}}
	}
	for name, c := range map[string]struct {
		check check
		bad   goPackage
	}{
		"later layer":           {wrongWayImports, importing("stanch/playbooks", "stanch/activities/kube")},
		"last layer":            {wrongWayImports, importing("stanch/bpf", "stanch/cmd/stanch")},
		"chart in an action":    {wrongWayImports, importing("stanch/activities/kube", "stanch/deploy/chart")},
		"product in the chart":  {wrongWayImports, importing("stanch/deploy/chart", "stanch/sensors")},
		"product in an image":   {wrongWayImports, importing("stanch/deploy/image", "stanch/sensors")},
		"command in a command":  {wrongWayImports, importing("stanch/deploy/images", "stanch/cmd/stanch")},
		"tests' environment":    {wrongWayImports, importing("stanch/worker/config", "stanch/testenv/aws")},
		"kernel programs":       {wrongWayImports, importing("stanch/sensors/agent", "stanch/bpf")},
		"kernel library":        {extraImporters, importing("stanch/sensors/agent", "github.com/cilium/ebpf/link")},
		"Temporal server":       {extraImporters, importing("stanch/worker", "go.temporal.io/server/temporal")},
		"Temporal in a sensor":  {lightSensor, importing("stanch/cmd/stanch-sensor", "go.temporal.io/sdk/client")},
		"client in a sensor":    {lightSensor, importing("stanch/cmd/stanch-sensor", "k8s.io/client-go/kubernetes")},
		"Kubernetes in a rule":  {lightPackages, importing("stanch/sensors/rules", "k8s.io/api/core/v1")},
		"kernel in a playbook":  {lightPackages, importing("stanch/playbooks", "github.com/cilium/ebpf")},
		"package without a doc": {missingComments, goPackage{ImportPath: "stanch/x", GoFiles: []string{"x.go"}}},
	} {
		require.Len(t, c.check([]goPackage{c.bad}), 1, name)
	}
	require.Empty(t, wrongWayImports([]goPackage{importing("stanch/activities/kube", "stanch/playbooks")}))
	require.Empty(t, wrongWayImports([]goPackage{importing("stanch/sensors/probe", "stanch/bpf")}))
	require.Empty(t, wrongWayImports([]goPackage{importing("stanch/worker/manifests", "stanch/deploy/chart")}))
	require.Empty(t, wrongWayImports([]goPackage{importing("stanch/deploy/images", "stanch/worker/manifests")}))
	require.Empty(t, extraImporters([]goPackage{importing("stanch/sensors/probe", "github.com/cilium/ebpf")}))
}

func TestModuleHasNoReplaceDirectives(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	require.NoError(t, err)
	require.Contains(t, string(raw), "module stanch\n")
	require.NotContains(t, string(raw), "replace ")
}
