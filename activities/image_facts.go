package activities

import "time"

// ImageFacts is what `enrich: image` finds out about the image that a pod runs. What is not known is "unknown", with the
// reason in Missing: it is never said to be absent.
type ImageFacts struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
	// FirstSeen is the oldest trace of the digest that the cluster still has.
	FirstSeen     time.Time `json:"first_seen,omitzero"`
	FirstWorkload string    `json:"first_workload"`
	// RolledOutBy is the field manager that last wrote the workload's template, RolledOutAt when the revision was made.
	RolledOutBy     string          `json:"rolled_out_by"`
	RolledOutAt     time.Time       `json:"rolled_out_at,omitzero"`
	Vulnerabilities Vulnerabilities `json:"vulnerabilities"`
	Signature       Signature       `json:"signature"`
	Missing         []string        `json:"missing"`
}

// Vulnerabilities are those of a report in the cluster. Known says that there is one.
type Vulnerabilities struct {
	ReportFound bool   `json:"report_found" expr:"report_found"`
	Critical    int    `json:"critical" expr:"critical"`
	High        int    `json:"high" expr:"high"`
	Fixable     int    `json:"fixable" expr:"fixable"` // of these two
	Report      string `json:"report" expr:"report"`
}

// Signature is what the cluster's own admission says of the image: "verified", "failed" or "unknown".
type Signature struct {
	State  string `json:"state" expr:"state"`
	Source string `json:"source" expr:"source"`
}
