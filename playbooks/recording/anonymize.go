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

// vocabulary are the fields whose words are Stanch's own: a pod that is called "pod" must not change them.
var vocabulary = map[string]bool{
	"kind": true, "operation": true, "action": true, "outcome": true, "verdict": true, "guard": true, "rule": true, "severity": true, "objective": true,
	"technique": true, "facet": true, "state": true, "source": true, "sha256": true, "playbook": true, "hash": true, "protocol": true,
	"family": true, "runtime": true, "config": true, "opened": true, "time": true, "detected": true,
}

// personal are the fields that name people, wherever they stand: how they are known may be in it too.
var personal = map[string]bool{
	"person": true, "people": true, "users": true, "user_names": true, "who": true, "actor": true, "actors": true, "owner": true, "assignee": true, "judged_by": true, "by": true, "yes": true, "stopped": true,
}

// free are the fields whose keys are data, and so may be names.
var free = map[string]bool{"outputs": true, "params": true, "prior": true, "labels": true}

// plainKey is a key that is a word of a schema, and not somebody's name.
var plainKey = regexp.MustCompile(`^[a-z][a-z_]*$`)

// hexID is a container's id as runtimes make it: nobody chose it.
var hexID = regexp.MustCompile(`^[0-9a-f]{6,64}$`)

// Anonymise gives a copy in which pods, containers, workloads, namespaces, hosts, clusters and people have numbers for
// names, the same number wherever the same name stands: also in texts, paths, ids and command lines.
func Anonymise(r Recording) (Recording, error) {
	for i := range r.Playbooks {
		if r.Playbooks[i].File != path.Base(r.Playbooks[i].File) {
			r.Playbooks = slices.Clone(r.Playbooks)
			r.Playbooks[i].File = path.Base(r.Playbooks[i].File) // folders say whose they are
		}
	}
	v, err := asJSON(r)
	if err != nil {
		return r, fmt.Errorf("anonymise the recording: %w", err)
	}
	names := namesOf(r, v)
	raw, err := json.Marshal(names.renamed("", v, false))
	if err != nil {
		return r, fmt.Errorf("anonymise the recording: %w", err)
	}
	var out Recording
	if err := json.Unmarshal(raw, &out); err != nil {
		return r, fmt.Errorf("anonymise the recording: %w", err)
	}
	for i := range out.Detections {
		pod := &out.Detections[i].Detection.Event.Container.Pod
		pod.Labels, pod.IP = nil, ""
		process := &out.Detections[i].Detection.Event.Process
		process.Cwd, process.Ancestors = "", process.Ancestors[:min(1, len(process.Ancestors))]
	}
	out.Anonymised = true
	return out, nil
}

func asJSON(r Recording) (any, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller says what was done
	}
	return generic(raw)
}

// names are the names of a recording with what replaces them.
type names struct {
	with   map[string]string
	folded map[string]string // people: texts write them with and without capitals
	count  map[string]int
	re     *regexp.Regexp
}

func (n *names) add(kind, s string) {
	if s == "" || n.with[s] != "" {
		return
	}
	if kind == "person" {
		if same := n.folded[strings.ToLower(s)]; same != "" {
			n.with[s] = same
			return
		}
	}
	n.count[kind]++
	n.with[s] = fmt.Sprintf("%s-%d", kind, n.count[kind])
	if kind == "person" {
		n.folded[strings.ToLower(s)] = n.with[s]
	}
}

// person adds a name as statements write it: "alice (uid 0 on the local socket)", "kubernetes:alice@example.com".
func (n *names) person(s string) {
	who, how, _ := strings.Cut(s, " (")
	n.add("proof", strings.TrimSuffix(how, ")"))
	if source, account, ok := strings.Cut(who, ":"); ok && plainKey.MatchString(source) {
		who = account
	}
	n.add("person", who)
	if local, _, ok := strings.Cut(who, "@"); ok && local != "" { // texts call them by it
		n.with[local] = n.with[who]
		n.folded[strings.ToLower(local)] = n.with[who]
	}
}

// proved is how a person was known, as texts write it behind the name.
var proved = regexp.MustCompile(`\((uid \d+ on the local socket|Kubernetes user [^()]+ by TokenReview|[^()]*\bSlack\b[^()]*)\)`)

// namesOf collects the names in a recording, whose JSON is v.
func namesOf(r Recording, v any) *names {
	n := &names{with: map[string]string{}, folded: map[string]string{}, count: map[string]int{}}
	for _, d := range r.Detections {
		c := d.Detection.Event.Container
		n.add("host", d.Detection.Node)
		n.add("host", d.Detection.Event.Node)
		n.add("pod", c.Pod.Name)
		for _, chosen := range []string{c.Name, c.ID} {
			if !strings.HasPrefix(c.ID, chosen) || !hexID.MatchString(chosen) { // a runtime's own id is no name
				n.add("container", chosen)
			}
		}
		if !strings.HasPrefix(c.ID, c.Workload.Name) || !hexID.MatchString(c.Workload.Name) {
			n.add("workload", c.Workload.Name)
		}
		n.add("namespace", c.Pod.Namespace)
		n.add("namespace", d.Detection.Event.Subject.Namespace)
		n.add("account", c.Pod.ServiceAccount)
		n.add("image", c.Image)
	}
	for _, a := range r.Answers {
		if a.Decision == nil || a.Decision.Inputs == nil || a.Decision.Inputs.Target == nil {
			continue
		}
		for _, w := range a.Decision.Inputs.Target.Owners {
			n.add("workload", w.Name)
		}
	}
	for _, vote := range r.Votes {
		n.add("person", vote.Person)
		n.add("proof", vote.Proved)
	}
	n.people("", v)
	n.add("cluster", r.Incident.Cluster)
	n.compile()
	return n
}

// people collects the names in fields that name people.
func (n *names) people(key string, v any) {
	switch v := v.(type) {
	case string:
		if personal[key] {
			n.person(v)
		}
		for _, m := range proved.FindAllStringSubmatch(v, -1) {
			n.add("proof", m[1])
		}
	case []any:
		for _, one := range v {
			n.people(key, one)
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			n.people(k, v[k])
		}
	}
}

// compile makes the expression that finds whole names, the longest first.
func (n *names) compile() {
	known := slices.SortedFunc(maps.Keys(n.with), func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	var parts []string
	for _, k := range known {
		part := regexp.QuoteMeta(k)
		if n.folded[strings.ToLower(k)] != "" {
			part = "(?i:" + part + ")"
		}
		parts = append(parts, part)
	}
	if len(parts) > 0 {
		n.re = regexp.MustCompile(`(^|[^\pL\pN])(` + strings.Join(parts, "|") + `)($|[^\pL\pN])`)
	}
}

// replace replaces whole names.
func (n *names) replace(s string) string {
	if n.re == nil {
		return s
	}
	for range 20 { // neighbors share the character between them
		next := n.re.ReplaceAllStringFunc(s, func(m string) string {
			sub := n.re.FindStringSubmatch(m)
			return sub[1] + cmp.Or(n.with[sub[2]], n.folded[strings.ToLower(sub[2])]) + sub[3]
		})
		if next == s {
			break
		}
		s = next
	}
	return s
}

// renamed replaces the names in every text of a value, and in the keys of what actions answered.
func (n *names) renamed(key string, v any, inFree bool) any {
	switch v := v.(type) {
	case string:
		if vocabulary[key] && !inFree || key == "scope" && (v == "default" || v == "drill") {
			return v
		}
		return n.replace(v)
	case []any:
		for i := range v {
			v[i] = n.renamed(key, v[i], inFree)
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, inner := range v {
			name := k
			if inFree && (!plainKey.MatchString(k) || n.folded[strings.ToLower(k)] != "") {
				name = n.replace(k)
			}
			out[name] = n.renamed(k, inner, inFree || free[k])
		}
		return out
	}
	return v
}
