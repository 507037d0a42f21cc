package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"stanch/deploy/chart"
)

// chartArchive is the name of the chart's archive, which `helm install` accepts.
const chartArchive = "stanch-chart.tgz"

// developmentVersion is the line of Chart.yaml that names the tag of the images.
const developmentVersion = "\nappVersion: dev\n"

// chartImages says where the chart finds the images.
type chartImages struct {
	version  string
	registry string            // "" for images that are imported on the nodes
	digests  map[string]string // of the pushed images by name; a digest names exactly one image
}

// writeChart writes the chart as an archive. It installs the images of the version and, if they were pushed, exactly
// those that were.
func writeChart(dir string, images chartImages) error {
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	archive := tar.NewWriter(zipped)
	err := fs.WalkDir(chart.Files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := chart.Files.ReadFile(name)
		if err != nil {
			return err //nolint:wrapcheck // the caller adds context
		}
		switch {
		case name == "Chart.yaml":
			raw, err = setChartVersion(raw, images.version)
		case name == "values.yaml" && images.registry != "":
			raw, err = images.pinIn(raw)
		}
		if err != nil {
			return err
		}
		header := &tar.Header{
			Name: "stanch/" + name, Size: int64(len(raw)), Mode: 0o644, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg,
		}
		if err := archive.WriteHeader(header); err != nil {
			return err //nolint:wrapcheck // the caller adds context
		}
		_, err = archive.Write(raw)
		return err //nolint:wrapcheck // the caller adds context
	})
	for _, end := range []func() error{archive.Close, zipped.Close} {
		if err == nil {
			err = end()
		}
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, chartArchive), out.Bytes(), 0o644) //nolint:gosec // people share archives
	}
	if err != nil {
		return fmt.Errorf("write the chart: %w", err)
	}
	return nil
}

// setChartVersion replaces the version of the programs in Chart.yaml.
func setChartVersion(file []byte, version string) ([]byte, error) {
	old := []byte(developmentVersion)
	if bytes.Count(file, old) != 1 {
		return nil, fmt.Errorf("set the version: Chart.yaml has no line %q", bytes.TrimSpace(old))
	}
	return bytes.Replace(file, old, fmt.Appendf(nil, "\nappVersion: %q\n", version), 1), nil
}

// pinIn sets the registry and the digests of the images in values.yaml.
func (c chartImages) pinIn(file []byte) ([]byte, error) {
	replace := func(old, changed string) error {
		if bytes.Count(file, []byte(old)) != 1 {
			return fmt.Errorf("set the images: values.yaml has no line %q", old)
		}
		file = bytes.Replace(file, []byte(old), []byte(changed), 1)
		return nil
	}
	if err := replace("  registry: localhost\n", fmt.Sprintf("  registry: %q\n", c.registry)); err != nil {
		return nil, err
	}
	for key, name := range map[string]string{"worker": "stanch", "sensor": "stanch-sensor"} {
		line := fmt.Sprintf("  %s: { repository: %s, tag: \"\", digest: ", key, name)
		if err := replace(line+"\"\" }", line+fmt.Sprintf("%q }", c.digests[name])); err != nil {
			return nil, err
		}
	}
	return file, nil
}
