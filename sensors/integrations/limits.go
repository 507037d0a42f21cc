package integrations

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// The limits of one record. They are far above what the supported sensors send.
const (
	// MaxRecordBytes is the maximum size of one record, in bytes (256 KiB).
	MaxRecordBytes = 256 << 10
	maxDepth       = 64
	// maxValues is the maximum number of fields and elements of a record at all levels.
	maxValues = 10_000

	maxIdentifierBytes = 256  // longer identifiers are rejected, because a truncated one would refer to something else
	maxTextBytes       = 4096 // for example a path
	maxMessageBytes    = 500
	maxArgs            = 128
	maxCommandBytes    = 8 << 10
	maxLabels          = 64
)

// checkLimits returns an error for a record that exceeds the limits, before it is parsed.
func checkLimits(raw []byte) error { return checkJSONLimits(raw, MaxRecordBytes, maxDepth, maxValues) }

func checkJSONLimits(raw []byte, most, deepest, widest int) error {
	if len(raw) > most {
		return fmt.Errorf("the record is %d bytes long; the maximum is %d", len(raw), most)
	}
	if trimmed := bytes.TrimSpace(raw); len(trimmed) == 0 || trimmed[0] != '{' {
		return errors.New("not a JSON object")
	}
	depth, values, inString := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > deepest {
				return fmt.Errorf("nested deeper than %d levels", deepest)
			}
		case c == '}' || c == ']':
			depth--
		case c == ',':
			if values++; values > widest {
				return fmt.Errorf("it has more than %d fields", widest)
			}
		}
	}
	return nil
}

func tooLongError(what, s string) error {
	return fmt.Errorf("the %s is %d bytes long; the maximum is %d: %q", what, len(s), maxIdentifierBytes,
		truncate.Bytes(s, 60))
}

// isPlausibleTime rejects times that no clock reports or that JSON cannot represent.
func isPlausibleTime(t time.Time) bool { return t.Year() >= 2000 && t.Year() <= 2200 }

// finalizeAlert limits the fields of an alert, sets its ID, and returns an error if a required field is missing.
func finalizeAlert(d *sensors.Detection, raw []byte) (DecodedRecord, error) {
	e, c := &d.Event, &d.Event.Container
	for what, s := range map[string]string{
		"rule": d.Rule, "id": d.ID, "node": d.Node, "container ID": c.ID, "container name": c.Name,
		"pod namespace": c.Pod.Namespace,
		"pod name":      c.Pod.Name, "pod UID": c.Pod.UID, "workload": c.Workload.Name, "workload kind": c.Workload.Kind,
		"technique": d.Technique,
	} {
		if len(s) > maxIdentifierBytes {
			return DecodedRecord{}, tooLongError(what, s)
		}
	}
	switch {
	case d.Rule == "":
		return DecodedRecord{}, errors.New("invalid alert: missing rule")
	case c.ID == "" && c.Pod.Name == "" && !hasSubject(e):
		return DecodedRecord{}, errNotAboutContainer
	case !isPlausibleTime(d.Time):
		return DecodedRecord{}, errors.New("invalid alert: missing or invalid time")
	}
	d.Time = d.Time.UTC()
	if d.ID == "" {
		sum := sha256.Sum256(raw)
		d.ID = d.Source + "-" + hex.EncodeToString(sum[:12])
	}
	d.Rule, d.Title = truncate.Bytes(d.Rule, 200), truncate.Bytes(orDefault(d.Title, d.Rule), maxMessageBytes)
	e.ID, e.Time, e.Node = d.ID, d.Time, d.Node
	if !isPlausibleTime(c.StartedAt) {
		c.StartedAt = time.Time{}
	}
	c.StartedAt = c.StartedAt.UTC()
	for _, s := range []*string{
		&e.Process.Name, &e.Process.Exe, &e.Process.Cwd, &e.Process.TTY, &e.File.Path, &e.Syscall.Name, &e.Syscall.Detail,
		&e.Network.Address, &e.Network.Domain, &e.Network.Protocol, &c.Image, &c.ImageDigest, &c.Runtime, &c.Pod.IP,
		&c.Pod.ServiceAccount,
	} {
		*s = truncate.Bytes(*s, maxTextBytes)
	}
	limitRequestFields(e)
	e.Process.Args, e.Process.ArgsTruncated = limitArgs(e.Process.Args, e.Process.ArgsTruncated)
	e.Process.Ancestors = e.Process.Ancestors[:min(len(e.Process.Ancestors), sensors.MaxAncestors)]
	for i := range e.Process.Ancestors {
		a := &e.Process.Ancestors[i]
		a.Name, a.Exe = truncate.Bytes(a.Name, maxTextBytes), truncate.Bytes(a.Exe, maxTextBytes)
		a.Args, _ = limitArgs(a.Args, false)
	}
	c.Pod.Labels, c.Pod.Annotations = validLabels(c.Pod.Labels), validLabels(c.Pod.Annotations)
	for i := range d.Reasons {
		d.Reasons[i] = truncate.Bytes(d.Reasons[i], maxMessageBytes)
	}
	return DecodedRecord{Alert: d}, nil
}

// limitRequestFields shortens the fields of a Kubernetes or cloud API request. The limit for the user and the
// principal is higher than what the gateway accepts, so that the gateway rejects a long name instead of using a
// shortened one.
func limitRequestFields(e *sensors.Event) {
	a, c := &e.Audit, &e.Cloud
	for _, s := range []*string{
		&a.Verb, &a.Resource, &a.Subresource, &a.ImpersonatedUser, &a.Decision, &a.DecisionReason, &a.UserAgent, &a.Stage,
		&a.Binding.Role, &c.Service, &c.EventName, &c.Region, &c.Account,
		&c.PrincipalID, &c.PrincipalType, &c.SourceIP, &c.UserAgent, &c.ErrorCode, &c.Role, &c.SessionName,
	} {
		*s = truncate.Bytes(*s, maxMessageBytes)
	}
	a.User, c.Principal = truncate.Bytes(a.User, maxTextBytes), truncate.Bytes(c.Principal, maxTextBytes)
}

// subjectOf returns the account that made a Kubernetes or cloud API request. It is the subject of a detection that is
// not about a container.
func subjectOf(e sensors.Event) sensors.Subject {
	a, c := e.Audit, e.Cloud
	switch {
	case e.Kind == sensors.KindKubernetesAudit && a.ServiceAccount.Name != "":
		return sensors.Subject{Kind: "ServiceAccount", Namespace: a.ServiceAccount.Namespace, Name: a.ServiceAccount.Name}
	case e.Kind == sensors.KindKubernetesAudit && a.User != "":
		return sensors.Subject{Kind: "User", Name: truncate.Bytes(a.User, maxIdentifierBytes)}
	case e.Kind == sensors.KindCloudAPICall && c.Role != "":
		return sensors.Subject{Kind: "Role", Name: truncate.Bytes(c.Account+"/"+c.Role, maxIdentifierBytes)}
	case e.Kind == sensors.KindCloudAPICall && c.Principal != "":
		return sensors.Subject{Kind: "User", Name: truncate.Bytes(c.Principal, maxIdentifierBytes)}
	case e.Kind == sensors.KindCloudAPICall && c.Account != "":
		return sensors.Subject{Kind: "Account", Name: truncate.Bytes(c.Account, maxIdentifierBytes)}
	}
	return sensors.Subject{}
}

// hasSubject reports whether an event is about an entity other than a container.
func hasSubject(e *sensors.Event) bool {
	switch e.Kind {
	case sensors.KindKubernetesAudit:
		return e.Subject.Name != "" && e.Audit.Resource != "" && len(e.Audit.Name) <= maxIdentifierBytes &&
			len(e.Audit.Namespace) <= maxIdentifierBytes
	case sensors.KindCloudAPICall:
		return e.Subject.Name != "" && e.Cloud.EventName != ""
	default:
		return false
	}
}

// limitArgs keeps the beginning of a command line, so that an incident can contain a hundred of them. It reports
// whether arguments were cut.
func limitArgs(args []string, cut bool) ([]string, bool) {
	if len(args) > maxArgs {
		args, cut = args[:maxArgs], true
	}
	left := maxCommandBytes
	for i, a := range args {
		if len(a) > left {
			args[i] = truncate.Bytes(a, max(left, len("…")))
			return args[:i+1], true
		}
		left -= len(a)
	}
	return args, cut
}

// validLabels removes labels that Kubernetes would not accept. It returns nil if there are too many labels, because a
// selection would be arbitrary.
func validLabels(labels map[string]string) map[string]string {
	if len(labels) > maxLabels {
		return nil
	}
	for k, v := range labels {
		if len(k) > 253+1+63 || len(v) > 63 {
			delete(labels, k)
		}
	}
	return labels
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// splitCommandLine splits a command line that was joined with spaces. A part in double quotes is one argument, which
// is how Tetragon writes arguments with spaces.
func splitCommandLine(line string) []string {
	if !strings.Contains(line, `"`) {
		return strings.Fields(line)
	}
	var out []string
	var word strings.Builder
	quoted, begun := false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, begun = !quoted, true
		case r == ' ' && !quoted:
			if begun {
				out = append(out, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	if begun {
		out = append(out, word.String())
	}
	return out
}
