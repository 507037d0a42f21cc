package activities

import "time"

// ImageFacts is the output of `enrich: image`: facts about the image of a pod. Unknown facts are "unknown", with the
// reason in Missing, and never reported as absent.
type ImageFacts struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
	// FirstSeen is the time of the oldest trace of the digest in the cluster.
	FirstSeen     time.Time `json:"first_seen,omitzero"`
	FirstWorkload string    `json:"first_workload"`
	// RolledOutBy is the field manager that last changed the workload's template. RolledOutAt is when the revision was
	// created.
	RolledOutBy     string          `json:"rolled_out_by"`
	RolledOutAt     time.Time       `json:"rolled_out_at,omitzero"`
	Vulnerabilities Vulnerabilities `json:"vulnerabilities"`
	Signature       Signature       `json:"signature"`
	Missing         []string        `json:"missing"`
}

// Vulnerabilities are those of a report in the cluster. Known is false if there is no report.
type Vulnerabilities struct {
	ReportFound bool   `json:"report_found" expr:"report_found"`
	Critical    int    `json:"critical" expr:"critical"`
	High        int    `json:"high" expr:"high"`
	Fixable     int    `json:"fixable" expr:"fixable"` // of Critical and High
	Report      string `json:"report" expr:"report"`
}

// Signature is the result of the cluster's own admission policy for the image: "verified", "failed" or "unknown".
type Signature struct {
	State  string `json:"state" expr:"state"`
	Source string `json:"source" expr:"source"`
}
