// Package library embeds the playbooks that Stanch ships. It contains no playbook logic: each playbook is a file that a
// user could write.
package library

import (
	"bytes"
	"embed"
	"slices"
	"strings"

	"stanch/playbooks"
)

// PlaybookFiles contains the shipped playbooks and their tests.
//
//go:embed *.yaml
var PlaybookFiles embed.FS

// PlaybookSources returns the shipped playbooks without their tests, sorted by name.
func PlaybookSources() []playbooks.SourceFile {
	entries, err := PlaybookFiles.ReadDir(".")
	if err != nil {
		return nil // the files are embedded
	}
	var out []playbooks.SourceFile
	for _, e := range entries {
		if raw, err := PlaybookFiles.ReadFile(e.Name()); err == nil && !strings.HasSuffix(e.Name(), "_test.yaml") {
			out = append(out, playbooks.SourceFile{File: "library/" + e.Name(), Content: raw, Shipped: true})
		}
	}
	return out
}

// IsShipped reports whether source is identical to a shipped playbook.
func IsShipped(source []byte) bool {
	return slices.ContainsFunc(PlaybookSources(), func(s playbooks.SourceFile) bool {
		return bytes.Equal(s.Content,
			source)
	})
}
