package rules

import (
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

var listNamePattern = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// namedList is a named list of strings or integers.
type namedList struct {
	file  *packFile
	at    *yaml.Node
	texts []string
	ints  []int
}

// value returns the list as a constant for conditions.
func (l *namedList) value() any {
	if l.ints != nil {
		return l.ints
	}
	return l.texts
}

// listExtension adds elements to a list that is defined elsewhere.
type listExtension struct {
	name string
	at   *yaml.Node
	namedList
}

func listsSchema() schemaObject {
	values := schemaObject{"type": "array", "items": schemaObject{"type": []string{"string", "integer"}}}
	return schemaObject{
		"type":          []string{"object", "null"},
		"propertyNames": schemaObject{"pattern": listNamePattern.String()},
		"additionalProperties": schemaObject{"oneOf": []any{
			values, schemaObject{
				"type": "object", "additionalProperties": false, "required": []string{"append"},
				"properties": schemaObject{"append": values},
			},
		}},
	}
}

func macrosSchema() schemaObject {
	return schemaObject{
		"type":                 []string{"object", "null"},
		"propertyNames":        schemaObject{"pattern": listNamePattern.String()},
		"additionalProperties": schemaObject{"type": "string"},
	}
}

// visitNamed calls visit for each entry of a mapping whose keys are names.
func (f *packFile) visitNamed(v *yaml.Node, what string, visit func(key, value *yaml.Node)) {
	switch {
	case v.Kind == yaml.ScalarNode && v.Tag == "!!null":
	case v.Kind != yaml.MappingNode:
		f.errorf(v, "type", "", "`%s` must be a mapping keyed by name, not %s", what, yamlnode.DescribeKind(v))
	default:
		f.reader.VisitKeys(v, visit)
	}
}

// isNameAvailable reports whether a list or macro may have this name, and records a problem if not.
func (l *loader) isNameAvailable(f *packFile, key *yaml.Node) bool {
	name := key.Value
	switch {
	case !listNamePattern.MatchString(name):
		f.errorf(key, "name", "use lowercase letters, digits and _, with a letter first",
			"invalid list or macro name `%s`", truncate.Text(name, 40))
	case slices.Contains(reservedNames(), name):
		f.errorf(key, "name", "choose another name", "the name `%s` is reserved", name)
	case l.lists[name] != nil:
		f.errorf(key, "duplicate-name", "`"+name+": { append: […] }` adds to it", "the list `%s` is already defined at %s",
			name, l.lists[name].file.position(l.lists[name].at))
	case l.macros[name] != nil:
		f.errorf(key, "duplicate-name", "choose another name", "the macro `%s` is already defined at %s", name,
			l.macros[name].file.position(l.macros[name].at))
	default:
		return true
	}
	return false
}

func (l *loader) readLists(f *packFile, v *yaml.Node) {
	f.visitNamed(v, "lists", func(key, value *yaml.Node) {
		if value.Kind != yaml.MappingNode {
			if one := f.readList(key, value); l.isNameAvailable(f, key) {
				l.lists[key.Value] = one
			}
			return
		}
		f.reader.ReadMapping(value, "a list", []yamlField{{
			Name: "append", Doc: "the elements to add", Required: true,
			Read: func(_ *yamlReader, _, v *yaml.Node) {
				l.listExtensions = append(l.listExtensions, &listExtension{
					name: key.Value, at: key,
					namedList: *f.readList(key, v),
				})
			},
		}})
	})
}

func (f *packFile) readList(key, v *yaml.Node) *namedList {
	out := &namedList{file: f, at: key}
	if v.Kind != yaml.SequenceNode {
		f.errorf(v, "type", "for example, write `[sh, bash]`", "the list `%s` must be a list, not %s",
			truncate.Text(key.Value, 40), yamlnode.DescribeKind(v))
		return out
	}
	for _, item := range v.Content {
		var n int
		switch {
		case item.Kind == yaml.ScalarNode && item.Tag == "!!int" && item.Decode(&n) == nil && out.texts == nil:
			out.ints = append(out.ints, n)
		case item.Kind == yaml.ScalarNode && item.Tag == "!!str" && out.ints == nil:
			out.texts = append(out.texts, item.Value)
		default:
			f.errorf(item, "type", "put it in quotes if it is a string",
				"the elements of the list `%s` must be all strings or all integers, not %s", truncate.Text(key.Value, 40),
				yamlnode.DescribeKind(item))
		}
	}
	return out
}

// extendLists applies the list extensions after all packs are read.
func (l *loader) extendLists() {
	for _, a := range l.listExtensions {
		to := l.lists[a.name]
		switch {
		case to == nil:
			a.file.errorf(a.at, "unknown-list", didYouMean(a.name, sortedKeys(l.lists)), "unknown list `%s`",
				truncate.Text(a.name, 40))
		case (to.ints != nil) != (a.ints != nil) && len(a.ints)+len(a.texts) > 0 && len(to.ints)+len(to.texts) > 0:
			a.file.errorf(a.at, "type", "", "the list `%s` at %s and the appended elements must be all strings or all integers",
				a.name, to.file.position(to.at))
		default:
			to.texts = append(to.texts, a.texts...)
			to.ints = append(to.ints, a.ints...)
		}
	}
}
