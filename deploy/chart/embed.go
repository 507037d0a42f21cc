// Package chart is the Helm chart that installs Stanch in a cluster: the only source of its Kubernetes objects. The
// package contains the files and no behavior.
package chart

import "embed"

// Files are the files of the chart.
//
//go:embed Chart.yaml values.yaml values.schema.json files templates/* templates/_helpers.tpl
var Files embed.FS
