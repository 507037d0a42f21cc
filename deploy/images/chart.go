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

// writeChart writes the chart as an archive. It installs the images of the version.
func writeChart(dir, version string) error {
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
		if name == "Chart.yaml" {
			if raw, err = setChartVersion(raw, version); err != nil {
				return err
			}
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
		err = os.WriteFile(filepath.Join(dir, chartArchive), out.Bytes(), 0o644)
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
