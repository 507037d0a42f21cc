package manifests

import (
	"fmt"
	"io/fs"
	"strings"

	chartutil "helm.sh/helm/v4/pkg/chart/common"
	renderutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"

	"stanch/deploy/chart"
)

// notesFile is the chart's text for whoever installs it.
const notesFile = "templates/NOTES.txt"

// LoadChart returns Stanch's chart with the version of this build.
func LoadChart(version string) (*chartv2.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(chart.Files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := chart.Files.ReadFile(name)
		files = append(files, &archive.BufferedFile{Name: name, Data: raw})
		return err //nolint:wrapcheck // the caller adds context
	})
	if err != nil {
		return nil, fmt.Errorf("load the chart: %w", err)
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("load the chart: %w", err)
	}
	c.Metadata.AppVersion = version
	return c, nil
}

// rendered is the chart with values.
type rendered struct {
	notes     string
	manifests []string // in the order in which they must be created
	hooks     []string
}

// checkValues checks values against the chart's schema. The error names the value that is invalid.
func checkValues(o Options, values map[string]any) error {
	c, err := LoadChart(o.Version)
	if err != nil {
		return err
	}
	_, err = renderutil.ToRenderValues(c, values, releaseOptions(o.Namespace), chartutil.DefaultCapabilities)
	if err != nil {
		return fmt.Errorf("check the values: %w", err)
	}
	return nil
}

func releaseOptions(namespace string) chartutil.ReleaseOptions {
	return chartutil.ReleaseOptions{Name: "stanch", Namespace: namespace, Revision: 1, IsInstall: true}
}

// render renders the chart for a namespace. The error names the value that is invalid.
func render(version, namespace string, values map[string]any) (*rendered, error) {
	c, err := LoadChart(version)
	if err != nil {
		return nil, err
	}
	all, err := renderutil.ToRenderValues(c, values, releaseOptions(namespace), chartutil.DefaultCapabilities)
	if err != nil {
		return nil, fmt.Errorf("check the values: %w", err)
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	r := &rendered{}
	for name, text := range files {
		switch {
		case strings.HasSuffix(name, notesFile):
			r.notes = strings.TrimSpace(text)
			delete(files, name)
		case strings.HasPrefix(name[strings.LastIndex(name, "/")+1:], "_"):
			delete(files, name)
		}
	}
	// Hooks run when Helm installs or uninstalls; without Helm there is nobody to run them.
	hooks, sorted, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, fmt.Errorf("read the rendered chart: %w", err)
	}
	for _, h := range hooks {
		r.hooks = append(r.hooks, strings.TrimSpace(h.Manifest))
	}
	for _, m := range sorted {
		r.manifests = append(r.manifests, strings.TrimSpace(m.Content))
	}
	return r, nil
}

// RenderValues returns the objects of the chart with values, in the order in which they must be created, and the hooks:
// objects that Helm creates only while it installs, upgrades or uninstalls. The error names the value that is invalid.
func RenderValues(version, namespace string, values map[string]any) (objects, hooks []string, err error) {
	r, err := render(version, namespace, values)
	if err != nil {
		return nil, nil, err
	}
	return r.manifests, r.hooks, nil
}
