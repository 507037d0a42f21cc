package rules

import (
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/yamlnode"
)

var listName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// list is a named list of texts or of whole numbers.
type list struct {
	file  *file
	at    *yaml.Node
	texts []string
	ints  []int
}

// value is the list as conditions see it.
func (l *list) value() any {
	if l.ints != nil {
		return l.ints
	}
	return l.texts
}

// listAppend adds to a list that stands elsewhere.
type listAppend struct {
	name string
	at   *yaml.Node
	list
}

func listsSchema() object {
	values := object{"type": "array", "items": object{"type": []string{"string", "integer"}}}
	return object{"type": []string{"object", "null"}, "propertyNames": object{"pattern": listName.String()}, "additionalProperties": object{"oneOf": []any{
		values, object{"type": "object", "additionalProperties": false, "required": []string{"append"}, "properties": object{"append": values}},
	}}}
}

func macrosSchema() object {
	return object{"type": []string{"object", "null"}, "propertyNames": object{"pattern": listName.String()}, "additionalProperties": object{"type": "string"}}
}

// named visits the entries of a mapping from names.
func (f *file) named(v *yaml.Node, what string, visit func(key, value *yaml.Node)) {
	switch {
	case v.Kind == yaml.ScalarNode && v.Tag == "!!null":
	case v.Kind != yaml.MappingNode:
		f.errorf(v, "type", "", "`%s` must be a mapping from names, not %s", what, yamlnode.Kind(v))
	default:
		f.r.Keys(v, visit)
	}
}

// free tells whether a name may be given to a list or a macro, and says why not.
func (l *loader) free(f *file, key *yaml.Node) bool {
	name := key.Value
	switch {
	case !listName.MatchString(name):
		f.errorf(key, "name", "lower case letters, digits and _, the first a letter", "`%s` is not a name for a list or a macro", yamlnode.Clip(name, 40))
	case slices.Contains(fixedNames(), name):
		f.errorf(key, "name", "choose another name", "`%s` means something else in conditions", name)
	case l.lists[name] != nil:
		f.errorf(key, "duplicate-name", "`"+name+": { append: […] }` adds to it", "the list `%s` stands at %s already", name, l.lists[name].file.place(l.lists[name].at))
	case l.macros[name] != nil:
		f.errorf(key, "duplicate-name", "choose another name", "the macro `%s` stands at %s already", name, l.macros[name].file.place(l.macros[name].at))
	default:
		return true
	}
	return false
}

func (l *loader) readLists(f *file, v *yaml.Node) {
	f.named(v, "lists", func(key, value *yaml.Node) {
		if value.Kind != yaml.MappingNode {
			if one := f.readList(key, value); l.free(f, key) {
				l.lists[key.Value] = one
			}
			return
		}
		f.r.Mapping(value, "a list", []field{{
			Name: "append", Doc: "what to add", Required: true,
			Read: func(_ *reader, _, v *yaml.Node) {
				l.appended = append(l.appended, &listAppend{name: key.Value, at: key, list: *f.readList(key, v)})
			},
		}})
	})
}

func (f *file) readList(key, v *yaml.Node) *list {
	out := &list{file: f, at: key}
	if v.Kind != yaml.SequenceNode {
		f.errorf(v, "type", "write for example `[sh, bash]`", "the list `%s` must be a list, not %s", yamlnode.Clip(key.Value, 40), yamlnode.Kind(v))
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
			f.errorf(item, "type", "put it in quotes if it is a text", "the list `%s` is of texts only or of whole numbers only, not with %s", yamlnode.Clip(key.Value, 40), yamlnode.Kind(item))
		}
	}
	return out
}

// extendLists adds what other packs add, once all packs are read.
func (l *loader) extendLists() {
	for _, a := range l.appended {
		to := l.lists[a.name]
		switch {
		case to == nil:
			a.file.errorf(a.at, "unknown-list", didYouMean(a.name, keysOf(l.lists)), "there is no list `%s` to add to", yamlnode.Clip(a.name, 40))
		case (to.ints != nil) != (a.ints != nil) && len(a.ints)+len(a.texts) > 0 && len(to.ints)+len(to.texts) > 0:
			a.file.errorf(a.at, "type", "", "the list `%s` at %s is of texts or of numbers, and what is added is of the other", a.name, to.file.place(to.at))
		default:
			to.texts = append(to.texts, a.texts...)
			to.ints = append(to.ints, a.ints...)
		}
	}
}
