package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// NamespaceSeverities maps a namespace, or a pattern for namespaces, to a severity.
type NamespaceSeverities map[string]sensors.Severity

// SeverityOf returns the severity for a namespace, and whether there is one. The exact name takes precedence, then the
// pattern with the most literal characters.
func (n NamespaceSeverities) SeverityOf(namespace string) (sensors.Severity, bool) {
	if s, ok := n[namespace]; ok && namespace != "" {
		return s, true
	}
	best := ""
	for pattern := range n {
		if matchesPattern(pattern, namespace) &&
			(best == "" || cmp.Or(cmp.Compare(literalLength(pattern), literalLength(best)), cmp.Compare(best, pattern)) > 0) {
			best = pattern
		}
	}
	s, ok := n[best]
	return s, ok && best != ""
}

// literalLength returns the number of literal characters in a pattern, which says how specific it is.
func literalLength(pattern string) int { return len(pattern) - strings.Count(pattern, "*") }

// Override changes how a rule of another pack is reported: it can disable the rule, change its severity and
// confidence, and add exceptions. It cannot change the condition.
type Override struct {
	Rule       string              `json:"rule"`
	Position   string              `json:"at"` // "file:line"
	Reason     string              `json:"reason,omitempty"`
	Disable    bool                `json:"disable,omitempty"`
	Severity   sensors.Severity    `json:"severity,omitempty"`
	Namespaces NamespaceSeverities `json:"namespaces,omitempty"`
	Confidence *float64            `json:"confidence,omitempty"`
	Exceptions []*Exception        `json:"exceptions,omitempty"`

	// WasSeverity and WasConfidence are the values before the override, for display.
	WasSeverity   sensors.Severity `json:"was_severity,omitempty"`
	WasConfidence *float64         `json:"was_confidence,omitempty"`

	broken bool // has problems: only its expressions are checked, so that all problems are reported at once
	tests  []*RuleTest
	file   *packFile
	node   *yaml.Node
	nodes  fieldNodes
}

func (o *Override) fields(f *packFile) []yamlField {
	keep := o.nodes.recordNode
	var disable *bool
	off := yamlnode.BoolField("disable", "if true, the rule never fires; `reason` must give the reason", &disable)
	readOff := off.Read
	off.Read = func(rd *yamlReader, key, v *yaml.Node) {
		if readOff(rd, key, v); disable != nil {
			o.Disable = *disable
		}
	}
	return []yamlField{
		keep(yamlnode.StringField("rule", "the rule's name or its Falco name", &o.Rule).AsRequired()),
		keep(yamlnode.StringField("reason", "the reason for the override", &o.Reason)),
		keep(off),
		keep(severityField("replaces the rule's severity", &o.Severity, &o.Namespaces)),
		keep(yamlnode.FractionField("confidence", "replaces the rule's confidence", &o.Confidence)),
		keep(yamlField{
			Name: "exceptions", Doc: "exceptions in addition to the rule's own", Schema: exceptionsSchema,
			Read: func(_ *yamlReader, _, v *yaml.Node) {
				o.Exceptions = readExceptions(f, v)
			},
		}),
		keep(testsField("events that test the override: some that still fire the rule, and some that no longer do", f, nil,
			&o.tests)),
	}
}

// DescribeChanges returns the changes of the override as phrases, such as "severity low instead of high".
func (o *Override) DescribeChanges() []string {
	var out []string
	if o.Disable {
		out = append(out, "disabled")
	}
	if o.Severity != "" {
		out = append(out, fmt.Sprintf("severity %s instead of %s", o.Severity, o.WasSeverity))
	}
	for _, pattern := range sortedKeys(o.Namespaces) {
		out = append(out, fmt.Sprintf("severity %s in %s", o.Namespaces[pattern], pattern))
	}
	if o.Confidence != nil && o.WasConfidence != nil {
		out = append(out, fmt.Sprintf("confidence %.2f instead of %.2f", *o.Confidence, *o.WasConfidence))
	}
	for _, e := range o.Exceptions {
		out = append(out, "except "+e.String())
	}
	return out
}

// applyOverride applies an override to its rule. An override with a problem is skipped completely, because the
// unchanged rule reports more.
func (l *loader) applyOverride(o *Override) {
	f := o.file
	before := len(f.reader.Problems)
	r := l.set.Find(o.Rule)
	if r == nil && o.Rule != "" {
		l.reportUnknownRule(o)
	}
	l.compileExceptions(f, "the override of `"+truncate.Text(o.Rule, 60)+"`", o.Exceptions)
	if o.broken {
		return
	}
	if o.Disable && strings.TrimSpace(o.Reason) == "" {
		f.errorf(o.node, "required", "for example, write `reason: we debug with it every day`",
			"`reason` is required to disable a rule")
	}
	if !o.Disable && o.Severity == "" && o.Namespaces == nil && o.Confidence == nil && len(o.Exceptions) == 0 &&
		len(f.reader.Problems) == before {
		f.errorf(o.node, "required", "add disable, severity, confidence or exceptions", "the override changes nothing")
	}
	if len(f.reader.Problems) > before || r == nil {
		return
	}
	for _, earlier := range r.Overrides {
		for _, twice := range []struct {
			key  string
			both bool
		}{
			{"disable", earlier.Disable && o.Disable},
			{"severity", (earlier.Severity != "" || earlier.Namespaces != nil) && (o.Severity != "" || o.Namespaces != nil)},
			{"confidence", earlier.Confidence != nil && o.Confidence != nil},
		} {
			if twice.both {
				f.errorf(o.nodes[twice.key], "duplicate-override", "remove one of them",
					"the `%s` of `%s` is already overridden at %s", twice.key, r.Name, earlier.Position)
				return
			}
		}
	}
	old := *r
	o.apply(r)
	for _, t := range o.tests {
		t.buildEvent(r.Kind)
	}
	if !l.runTests(r, o.tests) {
		*r = old
	}
}

func (o *Override) apply(r *Rule) {
	r.Overrides = append(slices.Clone(r.Overrides), o)
	r.Disabled = r.Disabled || o.Disable
	if o.Severity != "" || o.Namespaces != nil {
		o.WasSeverity = r.Severity
		r.Severity, r.Namespaces = cmp.Or(o.Severity, r.Severity), o.Namespaces
	}
	if o.Confidence != nil {
		was := r.Confidence
		o.WasConfidence = &was
		r.Confidence = *o.Confidence
	}
	r.Exceptions = slices.Concat(r.Exceptions, o.Exceptions)
}

func (l *loader) reportUnknownRule(o *Override) {
	at := o.nodes["rule"]
	if r := l.rulesByName[strings.ToLower(o.Rule)]; r != nil {
		o.file.errorf(at, "unknown-rule", "fix the rule first", "the rule `%s` at %s has errors", r.Name, r.Position)
		return
	}
	var known []string
	for _, r := range l.set.rules {
		known = append(append(known, r.Name), r.Aliases...)
	}
	hint := didYouMean(o.Rule, known)
	if !strings.HasPrefix(hint, "did you mean") {
		hint = "`stanch rules list` lists all rules"
	}
	o.file.errorf(at, "unknown-rule", hint, "unknown rule `%s`", truncate.Text(o.Rule, 60))
}
