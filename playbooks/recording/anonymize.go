package recording

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// fixedVocabularyFields are the fields whose values are Stanch's own terms. They are kept even if something has the
// same name, such as a pod named "pod".
var fixedVocabularyFields = map[string]bool{
	"kind": true, "operation": true, "action": true, "outcome": true, "verdict": true, "guard": true, "rule": true,
	"severity": true, "objective": true,
	"technique": true, "facet": true, "state": true, "source": true, "sha256": true, "playbook": true, "hash": true,
	"protocol": true,
	"family":   true, "runtime": true, "config": true, "opened": true, "time": true, "detected": true,
}

// personFields are the fields that name people, wherever they occur. They may include the authentication method.
var personFields = map[string]bool{
	"person": true, "people": true, "users": true, "user_names": true, "who": true, "actor": true, "actors": true,
	"owner": true, "assignee": true, "judged_by": true, "by": true, "yes": true, "stopped": true,
}

// freeFormFields are the fields whose keys are data and may therefore be names.
var freeFormFields = map[string]bool{"outputs": true, "params": true, "prior": true, "labels": true}

// schemaKeyPattern matches keys of a schema, which are not names.
var schemaKeyPattern = regexp.MustCompile(`^[a-z][a-z_]*$`)

// containerIDPattern matches container ids that a runtime generated.
var containerIDPattern = regexp.MustCompile(`^[0-9a-f]{6,64}$`)

// Anonymize returns a copy in which pods, containers, workloads, namespaces, hosts, clusters and people have numbered
// pseudonyms. The same name has the same pseudonym everywhere, also in texts, paths, ids and command lines.
func Anonymize(r Recording) (Recording, error) {
	for i := range r.Playbooks {
		if r.Playbooks[i].File != path.Base(r.Playbooks[i].File) {
			r.Playbooks = slices.Clone(r.Playbooks)
			r.Playbooks[i].File = path.Base(r.Playbooks[i].File) // directories may contain user names
		}
	}
	v, err := toJSONValue(r)
	if err != nil {
		return r, fmt.Errorf("anonymize the recording: %w", err)
	}
	names := collectNames(r, v)
	raw, err := json.Marshal(names.replaceInJSON("", v, false))
	if err != nil {
		return r, fmt.Errorf("anonymize the recording: %w", err)
	}
	var out Recording
	if err := json.Unmarshal(raw, &out); err != nil {
		return r, fmt.Errorf("anonymize the recording: %w", err)
	}
	for i := range out.Detections {
		pod := &out.Detections[i].Detection.Event.Container.Pod
		pod.Labels, pod.IP = nil, ""
		process := &out.Detections[i].Detection.Event.Process
		process.Cwd, process.Ancestors = "", process.Ancestors[:min(1, len(process.Ancestors))]
	}
	out.Anonymized = true
	return out, nil
}

func toJSONValue(r Recording) (any, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	return decodeJSON(raw)
}

// pseudonyms maps the names in a recording to their replacements.
type pseudonyms struct {
	replacements      map[string]string
	foldedPersonNames map[string]string // lower case, because texts write people's names with and without capitals
	countByKind       map[string]int
	pattern           *regexp.Regexp
}

func (n *pseudonyms) addName(kind, s string) {
	if s == "" || n.replacements[s] != "" {
		return
	}
	if kind == "person" {
		if same := n.foldedPersonNames[strings.ToLower(s)]; same != "" {
			n.replacements[s] = same
			return
		}
	}
	n.countByKind[kind]++
	n.replacements[s] = fmt.Sprintf("%s-%d", kind, n.countByKind[kind])
	if kind == "person" {
		n.foldedPersonNames[strings.ToLower(s)] = n.replacements[s]
	}
}

// addPerson adds a person as messages write them: "alice (uid 0 on the local socket)", "kubernetes:alice@example.com".
func (n *pseudonyms) addPerson(s string) {
	who, how, _ := strings.Cut(s, " (")
	n.addName("proof", strings.TrimSuffix(how, ")"))
	if source, account, ok := strings.Cut(who, ":"); ok && schemaKeyPattern.MatchString(source) {
		who = account
	}
	n.addName("person", who)
	if local, _, ok := strings.Cut(who, "@"); ok && local != "" { // texts use the local part alone
		n.replacements[local] = n.replacements[who]
		n.foldedPersonNames[strings.ToLower(local)] = n.replacements[who]
	}
}

// authenticationPattern matches the authentication method that follows a name in texts.
var authenticationPattern = regexp.MustCompile(
	`\((uid \d+ on the local socket|Kubernetes user [^()]+ by TokenReview|[^()]*\bSlack\b[^()]*)\)`,
)

// collectNames collects the names in a recording; v is its decoded JSON.
func collectNames(r Recording, v any) *pseudonyms {
	n := &pseudonyms{
		replacements: map[string]string{}, foldedPersonNames: map[string]string{},
		countByKind: map[string]int{},
	}
	for _, d := range r.Detections {
		c := d.Detection.Event.Container
		n.addName("host", d.Detection.Node)
		n.addName("host", d.Detection.Event.Node)
		n.addName("pod", c.Pod.Name)
		for _, chosen := range []string{c.Name, c.ID} {
			// ids that a runtime generated are not names
			if !strings.HasPrefix(c.ID, chosen) || !containerIDPattern.MatchString(chosen) {
				n.addName("container", chosen)
			}
		}
		if !strings.HasPrefix(c.ID, c.Workload.Name) || !containerIDPattern.MatchString(c.Workload.Name) {
			n.addName("workload", c.Workload.Name)
		}
		n.addName("namespace", c.Pod.Namespace)
		n.addName("namespace", d.Detection.Event.Subject.Namespace)
		n.addName("account", c.Pod.ServiceAccount)
		n.addName("image", c.Image)
	}
	for _, a := range r.ActionResults {
		if a.GuardDecision == nil || a.GuardDecision.GuardInputs == nil || a.GuardDecision.GuardInputs.TargetFacts == nil {
			continue
		}
		for _, w := range a.GuardDecision.GuardInputs.TargetFacts.Owners {
			n.addName("workload", w.Name)
		}
	}
	for _, vote := range r.Votes {
		n.addName("person", vote.Person)
		n.addName("proof", vote.AuthenticatedBy)
	}
	n.collectPeople("", v)
	n.addName("cluster", r.Incident.Cluster)
	n.compilePattern()
	return n
}

// collectPeople collects the values of fields that name people.
func (n *pseudonyms) collectPeople(key string, v any) {
	switch v := v.(type) {
	case string:
		if personFields[key] {
			n.addPerson(v)
		}
		for _, m := range authenticationPattern.FindAllStringSubmatch(v, -1) {
			n.addName("proof", m[1])
		}
	case []any:
		for _, one := range v {
			n.collectPeople(key, one)
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			n.collectPeople(k, v[k])
		}
	}
}

// compilePattern compiles the pattern of all names as complete words, the longest first.
func (n *pseudonyms) compilePattern() {
	known := slices.SortedFunc(maps.Keys(n.replacements),
		func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	var parts []string
	for _, k := range known {
		part := regexp.QuoteMeta(k)
		if n.foldedPersonNames[strings.ToLower(k)] != "" {
			part = "(?i:" + part + ")"
		}
		parts = append(parts, part)
	}
	if len(parts) > 0 {
		n.pattern = regexp.MustCompile(`(^|[^\pL\pN])(` + strings.Join(parts, "|") + `)($|[^\pL\pN])`)
	}
}

// replaceNames replaces the names that occur as complete words.
func (n *pseudonyms) replaceNames(s string) string {
	if n.pattern == nil {
		return s
	}
	for range 20 { // adjacent matches share the character between them
		next := n.pattern.ReplaceAllStringFunc(s, func(m string) string {
			sub := n.pattern.FindStringSubmatch(m)
			return sub[1] + cmp.Or(n.replacements[sub[2]], n.foldedPersonNames[strings.ToLower(sub[2])]) + sub[3]
		})
		if next == s {
			break
		}
		s = next
	}
	return s
}

// replaceInJSON replaces the names in every string of a value, and in the keys of free-form fields.
func (n *pseudonyms) replaceInJSON(key string, v any, inFree bool) any {
	switch v := v.(type) {
	case string:
		if fixedVocabularyFields[key] && !inFree || key == "scope" && (v == "default" || v == "drill") {
			return v
		}
		return n.replaceNames(v)
	case []any:
		for i := range v {
			v[i] = n.replaceInJSON(key, v[i], inFree)
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, inner := range v {
			name := k
			if inFree && (!schemaKeyPattern.MatchString(k) || n.foldedPersonNames[strings.ToLower(k)] != "") {
				name = n.replaceNames(k)
			}
			out[name] = n.replaceInJSON(k, inner, inFree || freeFormFields[k])
		}
		return out
	}
	return v
}
