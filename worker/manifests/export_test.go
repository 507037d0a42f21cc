package manifests

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	chartutil "helm.sh/helm/v4/pkg/chart/common"
	renderutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/engine"

	"stanch/deploy/chart"
)

// RenderWithHooks renders every object of the chart, including the hooks, which run only under Helm. The hooks of all
// events are included.
func RenderWithHooks(values map[string]any) (documents []string, err error) {
	c, err := LoadChart("test")
	if err != nil {
		return nil, err
	}
	release := chartutil.ReleaseOptions{Name: "stanch", Namespace: "stanch-system", Revision: 1, IsInstall: true}
	all, err := renderutil.ToRenderValues(c, values, release, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, notesFile) {
			continue
		}
		for document := range strings.SplitSeq("\n"+files[name], "\n---") {
			if strings.Contains(document, "\nkind: ") {
				documents = append(documents, document)
			}
		}
	}
	return append(documents, fmt.Sprintf(namespaceManifest, "stanch-system")), nil
}

// ChartFile returns a file of the chart.
func ChartFile(name string) ([]byte, error) { return chart.Files.ReadFile(name) }

// PermissionsTable is the content of files/permissions.yaml.
type PermissionsTable = permissionsTable
