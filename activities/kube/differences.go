package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/activities"
)

// Difference is one field that was changed since Stanch wrote it.
type Difference struct {
	Object    string // "NetworkPolicy shop/stanch-isolate-…"
	Field     string
	Want      string
	Have      string
	ChangedBy string    // field manager of the last write, as recorded by the API server; "" if unknown
	ChangedAt time.Time // time of the last write
}

// String returns the difference in one sentence.
func (d Difference) String() string {
	s := fmt.Sprintf("%s: %s is %s, expected %s", d.Object, d.Field, d.Have, d.Want)
	if d.ChangedBy != "" {
		s += fmt.Sprintf(" (last written by %s at %s)", d.ChangedBy, d.ChangedAt.Format(time.RFC3339))
	}
	return s
}

// DescribeDifferences returns the differences in one text.
func DescribeDifferences(differences []Difference) string {
	var out []string
	for _, d := range differences {
		out = append(out, d.String())
	}
	return strings.Join(out, "; ")
}

// driftFrom returns a drift with the differences; nil if there are none.
func driftFrom(differences []Difference) *activities.Drift {
	if len(differences) == 0 {
		return nil
	}
	return &activities.Drift{Detail: DescribeDifferences(differences)}
}

// observedObject is an object that is compared with what Stanch wrote as a field manager.
type observedObject struct {
	name    string // for people
	object  metav1.Object
	manager string
}

// labelDifferences compares the object's labels with the wanted entries.
func (o observedObject) labelDifferences(want map[string]string) []Difference {
	return o.entryDifferences("label", o.object.GetLabels(), want)
}

// annotationDifferences compares the object's annotations with the wanted entries.
func (o observedObject) annotationDifferences(want map[string]string) []Difference {
	return o.entryDifferences("annotation", o.object.GetAnnotations(), want)
}

func (o observedObject) entryDifferences(what string, have, want map[string]string) []Difference {
	var found []Difference
	for _, key := range slices.Sorted(maps.Keys(want)) {
		value, ok := have[key]
		if ok && value == want[key] {
			continue
		}
		if !ok {
			value = "absent"
		}
		by, when := lastFieldWriter(o.object, o.manager, "metadata", what+"s", key)
		if by == "" { // removed fields have no owner, so the last writer is the best guess
			by, when = lastWriter(o.object, o.manager)
		}
		found = append(found, Difference{
			Object: o.name, Field: what + " " + key, Want: want[key], Have: value, ChangedBy: by, ChangedAt: when,
		})
	}
	return found
}

// lastWriter returns who wrote an object last, ignoring the given manager and status updates.
func lastWriter(o metav1.Object, except string) (by string, when time.Time) {
	return lastFieldWriter(o, except)
}

// lastFieldWriter returns who wrote a field last, ignoring the given manager. The API server records fields as a tree
// of "f:name". Without a path, it returns who wrote any field.
func lastFieldWriter(o metav1.Object, except string, path ...string) (by string, when time.Time) {
	for _, f := range o.GetManagedFields() {
		if f.Manager == except || f.Subresource == "status" || f.Time == nil || !managesField(f.FieldsV1, path) {
			continue
		}
		if by == "" || f.Time.After(when) {
			by, when = f.Manager, f.Time.Time
		}
	}
	return by, when
}

func managesField(fields *metav1.FieldsV1, path []string) bool {
	if len(path) == 0 {
		return true
	}
	if fields == nil {
		return false
	}
	tree := json.RawMessage(fields.GetRawBytes())
	for _, name := range path {
		var level map[string]json.RawMessage
		if err := json.Unmarshal(tree, &level); err != nil {
			return false
		}
		next, ok := level["f:"+name]
		if !ok {
			return false
		}
		tree = next
	}
	return true
}

func compactJSON(v any) string {
	content, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(content)
}
