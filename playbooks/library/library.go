// Package library carries the playbooks that Stanch ships. It refuses to hold code: each is a file that a user
// could have written.
package library

import "embed"

// Files holds the shipped playbooks.
//
//go:embed *.yaml
var Files embed.FS
