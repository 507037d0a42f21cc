package foreign

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"stanch/sensors"
)

// The bounds of one record. They are far above what any of the sensors sends.
const (
	// MaxRecord is the size of one record in bytes.
	MaxRecord = 256 << 10
	maxDepth  = 64
	// maxValues bounds the fields and elements of a record, however they nest.
	maxValues = 10_000

	maxIdentity = 256  // a name that points at something: cut, it would point elsewhere, so it is refused
	maxText     = 4096 // a path
	maxSentence = 500
	maxArgs     = 128
	maxCommand  = 8 << 10
	maxLabels   = 64
)

// bounded refuses a record that is larger, deeper or wider than any sensor sends, before it is parsed.
func bounded(raw []byte) error { return boundedBy(raw, MaxRecord, maxDepth, maxValues) }

func boundedBy(raw []byte, most, deepest, widest int) error {
	if len(raw) > most {
		return fmt.Errorf("the record has %d bytes, at most %d are read", len(raw), most)
	}
	if trimmed := bytes.TrimSpace(raw); len(trimmed) == 0 || trimmed[0] != '{' {
		return errors.New("it is not a JSON object")
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
				return fmt.Errorf("it nests deeper than %d levels", deepest)
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

// shorten cuts a text that is shown to people.
func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	s = s[:most-len("…")]
	for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

func clip(s string) string { return shorten(s, 60) }

func tooLong(what, s string) error {
	return fmt.Errorf("its %s has %d bytes, at most %d are taken: %q", what, len(s), maxIdentity, clip(s))
}

// plausible keeps out what no clock says and what no JSON can hold.
func plausible(t time.Time) bool { return t.Year() >= 2000 && t.Year() <= 2200 }

// finish bounds an alert, gives it an id and refuses it if it lacks what every detection has.
func finish(d *sensors.Detection, raw []byte) (Report, error) {
	e, c := &d.Event, &d.Event.Container
	for what, s := range map[string]string{
		"rule": d.Rule, "id": d.ID, "node": d.Node, "container's id": c.ID, "container's name": c.Name, "pod's namespace": c.Pod.Namespace,
		"pod's name": c.Pod.Name, "pod's uid": c.Pod.UID, "workload": c.Workload.Name, "workload's kind": c.Workload.Kind, "technique": d.Technique,
	} {
		if len(s) > maxIdentity {
			return Report{}, tooLong(what, s)
		}
	}
	switch {
	case d.Rule == "":
		return Report{}, errors.New("the alert names no rule")
	case c.ID == "" && c.Pod.Name == "" && !about(e):
		return Report{}, errNoContainer
	case !plausible(d.Time):
		return Report{}, errors.New("the alert has no time, or one that no clock says")
	}
	d.Time = d.Time.UTC()
	if d.ID == "" {
		sum := sha256.Sum256(raw)
		d.ID = d.Source + "-" + hex.EncodeToString(sum[:12])
	}
	d.Rule, d.Title = shorten(d.Rule, 200), shorten(orElse(d.Title, d.Rule), maxSentence)
	e.ID, e.Time, e.Node = d.ID, d.Time, d.Node
	if !plausible(c.StartedAt) {
		c.StartedAt = time.Time{}
	}
	c.StartedAt = c.StartedAt.UTC()
	for _, s := range []*string{
		&e.Process.Name, &e.Process.Exe, &e.Process.Cwd, &e.Process.TTY, &e.File.Path, &e.Call.Name, &e.Call.Detail,
		&e.Network.Address, &e.Network.Domain, &e.Network.Protocol, &c.Image, &c.ImageDigest, &c.Runtime, &c.Pod.IP, &c.Pod.ServiceAccount,
	} {
		*s = shorten(*s, maxText)
	}
	boundRequest(e)
	e.Process.Args, e.Process.ArgsTruncated = boundArgs(e.Process.Args, e.Process.ArgsTruncated)
	e.Process.Ancestors = e.Process.Ancestors[:min(len(e.Process.Ancestors), sensors.MaxAncestors)]
	for i := range e.Process.Ancestors {
		a := &e.Process.Ancestors[i]
		a.Name, a.Exe = shorten(a.Name, maxText), shorten(a.Exe, maxText)
		a.Args, _ = boundArgs(a.Args, false)
	}
	c.Pod.Labels, c.Pod.Annotations = boundLabels(c.Pod.Labels), boundLabels(c.Pod.Annotations)
	for i := range d.Reasons {
		d.Reasons[i] = shorten(d.Reasons[i], maxSentence)
	}
	return Report{Alert: d}, nil
}

// boundRequest cuts what a sensor says of a request to the cluster or the cloud. Who made it is never cut short of what
// is taken: the gateway refuses a name that is longer.
func boundRequest(e *sensors.Event) {
	a, c := &e.Audit, &e.Cloud
	for _, s := range []*string{
		&a.Verb, &a.Resource, &a.Subresource, &a.Impersonated, &a.Decision, &a.DecisionReason, &a.UserAgent, &a.Stage, &a.Binding.Role, &c.Service, &c.Event, &c.Region, &c.Account,
		&c.PrincipalID, &c.PrincipalType, &c.SourceIP, &c.UserAgent, &c.Error, &c.Role, &c.Session,
	} {
		*s = shorten(*s, maxSentence)
	}
	a.User, c.Principal = shorten(a.User, maxText), shorten(c.Principal, maxText)
}

// subjectOf is the account that a request to the cluster or a call to the cloud was made with: what a detection is about
// where it is about no container.
func subjectOf(e sensors.Event) sensors.Subject {
	a, c := e.Audit, e.Cloud
	switch {
	case e.Kind == sensors.KindAudit && a.ServiceAccount.Name != "":
		return sensors.Subject{Kind: "ServiceAccount", Namespace: a.ServiceAccount.Namespace, Name: a.ServiceAccount.Name}
	case e.Kind == sensors.KindAudit && a.User != "":
		return sensors.Subject{Kind: "User", Name: shorten(a.User, maxIdentity)}
	case e.Kind == sensors.KindCloud && c.Role != "":
		return sensors.Subject{Kind: "Role", Name: shorten(c.Account+"/"+c.Role, maxIdentity)}
	case e.Kind == sensors.KindCloud && c.Principal != "":
		return sensors.Subject{Kind: "User", Name: shorten(c.Principal, maxIdentity)}
	case e.Kind == sensors.KindCloud && c.Account != "":
		return sensors.Subject{Kind: "Account", Name: shorten(c.Account, maxIdentity)}
	}
	return sensors.Subject{}
}

// about tells whether an event names something other than a container: an object of the cluster, an account.
func about(e *sensors.Event) bool {
	switch e.Kind {
	case sensors.KindAudit:
		return e.Subject.Name != "" && e.Audit.Resource != "" && len(e.Audit.Name) <= maxIdentity && len(e.Audit.Namespace) <= maxIdentity
	case sensors.KindCloud:
		return e.Subject.Name != "" && e.Cloud.Event != ""
	default:
		return false
	}
}

// boundArgs keeps the beginning of a command line: as many arguments, and as many bytes of all of them, as an incident
// can carry a hundred times.
func boundArgs(args []string, cut bool) ([]string, bool) {
	if len(args) > maxArgs {
		args, cut = args[:maxArgs], true
	}
	left := maxCommand
	for i, a := range args {
		if len(a) > left {
			args[i] = shorten(a, max(left, len("…")))
			return args[:i+1], true
		}
		left -= len(a)
	}
	return args, cut
}

// boundLabels drops what Kubernetes would not take as a label, and all of them if there are more than anybody sets: a
// choice among them would be a random one.
func boundLabels(labels map[string]string) map[string]string {
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

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// words splits a command line that was joined with spaces; what stands in double quotes is one word, as Tetragon
// writes an argument with spaces in it.
func words(line string) []string {
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
