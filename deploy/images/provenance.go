package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// provenanceMediaType is the media type of an in-toto statement.
const provenanceMediaType = "application/vnd.in-toto+json"

// statement is an in-toto statement, version 1, with SLSA provenance, version 1.
// Source: https://slsa.dev/spec/v1.0/provenance.
type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     provenance `json:"predicate"`
}

type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type provenance struct {
	BuildDefinition buildDefinition `json:"buildDefinition"`
	RunDetails      runDetails      `json:"runDetails"`
}

type buildDefinition struct {
	BuildType            string         `json:"buildType"`
	ExternalParameters   map[string]any `json:"externalParameters"`
	InternalParameters   map[string]any `json:"internalParameters"`
	ResolvedDependencies []resource     `json:"resolvedDependencies"`
}

type runDetails struct {
	Builder struct {
		ID string `json:"id"`
	} `json:"builder"`
}

// writeProvenance returns a statement of how an image was built: from which commit, with which command. It is not
// signed: whoever publishes images signs it with an identity of their own.
func writeProvenance(p program, s source, digests map[string]v1.Hash, index v1.Hash) ([]byte, error) {
	st := statement{Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1"}
	st.Subject = []resource{{Name: p.Name, Digest: map[string]string{index.Algorithm: index.Hex}}}
	for _, platform := range sortedKeys(digests) {
		d := digests[platform]
		st.Subject = append(st.Subject, resource{
			Name: p.Name + " " + platform, Digest: map[string]string{d.Algorithm: d.Hex},
		})
	}
	st.Predicate.BuildDefinition = buildDefinition{
		BuildType:          "make images",
		ExternalParameters: map[string]any{"version": s.Version, "platforms": sortedKeys(digests)},
		InternalParameters: map[string]any{"go": runtime.Version(), "flags": buildFlags(s.Version), "CGO_ENABLED": "0"},
		// Modules are in the bill of materials, with their checksums.
		ResolvedDependencies: []resource{},
	}
	if s.Revision != "" {
		st.Predicate.BuildDefinition.ResolvedDependencies = []resource{{
			URI: s.URL, Digest: map[string]string{"gitCommit": s.Revision},
		}}
	}
	st.Predicate.RunDetails.Builder.ID = "stanch/deploy/images"
	raw, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the provenance of %s: %w", p.Name, err)
	}
	return append(raw, '\n'), nil
}
