// Package library carries the playbooks that Stanch ships. It refuses to hold code: each is a file that a user
// could have written.
package library

import (
	"bytes"
	"embed"
	"slices"
	"strings"

	"stanch/playbooks"
)

// PlaybookFiles holds the shipped playbooks, with their tests beside them.
//
//go:embed *.yaml
var PlaybookFiles embed.FS

// PlaybookSources are the shipped playbooks without their tests, by the order of their names.
func PlaybookSources() []playbooks.SourceFile {
	entries, err := PlaybookFiles.ReadDir(".")
	if err != nil {
		return nil // it is part of the program
	}
	var out []playbooks.SourceFile
	for _, e := range entries {
		if raw, err := PlaybookFiles.ReadFile(e.Name()); err == nil && !strings.HasSuffix(e.Name(), "_test.yaml") {
			out = append(out, playbooks.SourceFile{File: "library/" + e.Name(), Content: raw, Shipped: true})
		}
	}
	return out
}

// IsShipped reports whether a text is that of a shipped playbook, unchanged.
func IsShipped(source []byte) bool {
	return slices.ContainsFunc(PlaybookSources(), func(s playbooks.SourceFile) bool { return bytes.Equal(s.Content, source) })
}
