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

// Files holds the shipped playbooks, with their tests beside them.
//
//go:embed *.yaml
var Files embed.FS

// Sources are the shipped playbooks without their tests, by the order of their names.
func Sources() []playbooks.Source {
	entries, err := Files.ReadDir(".")
	if err != nil {
		return nil // it is part of the program
	}
	var out []playbooks.Source
	for _, e := range entries {
		if raw, err := Files.ReadFile(e.Name()); err == nil && !strings.HasSuffix(e.Name(), "_test.yaml") {
			out = append(out, playbooks.Source{File: "library/" + e.Name(), Source: raw, Shipped: true})
		}
	}
	return out
}

// Has reports whether a text is that of a shipped playbook, unchanged.
func Has(source []byte) bool {
	return slices.ContainsFunc(Sources(), func(s playbooks.Source) bool { return bytes.Equal(s.Source, source) })
}
