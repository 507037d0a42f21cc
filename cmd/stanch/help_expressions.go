package main

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/sensors/expression"
)

// expressionsHelpTopic returns the help topic of `stanch help expressions`.
func expressionsHelpTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString(`Playbooks use expressions in when, if, target, foreach and until, and in ${…} within text and
parameters. The language is expr (https://expr-lang.org). Expressions are compiled and type-checked
before anything runs.

  compare     ==  !=  <  <=  >  >=  in  contains  startsWith  endsWith  matches
  combine     &&  ||  !   (or: and, or, not)   cond ? a : b   a ?? b
  strings     "in double or single quotes"; in YAML quote an expression that contains : # ! or {
  lists       incident.targets[0]   filter(incident.targets, .name == "web")
              any(incident.detections, .rule == "drift")
              in the second argument, .field is a field of the element, and # is the element

Names:
  incident          the incident when the playbook matched
  live              the current incident; only in until
  inputs.NAME       an input of the playbook
  ID.outcome        the outcome of an earlier step: succeeded, changed, unverified, unchanged,
                    proposed, denied, refused, failed or skipped
  ID.targets        the number of its targets;   ID.failed: how many of them failed or were refused
  ID.OUTPUT         an output (of its first target), if it succeeded; ` + "`stanch actions NAME`" + ` lists the outputs

Functions:
`)
	line := " "
	for _, name := range expression.Builtins() {
		if len(line)+len(name) > 100 {
			b.WriteString(line + "\n")
			line = " "
		}
		line += " " + name
	}
	b.WriteString(line + "\n\nFields of incident:\n")
	writeFieldHelp(&b, "  incident.", reflect.TypeFor[playbooks.Incident](), 0)
	return &cobra.Command{
		Use: "expressions", Short: "Names, functions and fields in expressions",
		Long: strings.TrimRight(b.String(), "\n"),
	}
}

// writeFieldHelp lists the fields of t that expressions can read, and the fields of nested structs one level deep.
func writeFieldHelp(b *strings.Builder, prefix string, t reflect.Type, deep int) {
	for f := range t.Fields() {
		name := f.Tag.Get("expr")
		if name == "" {
			continue
		}
		inner, many := f.Type, ""
		if inner.Kind() == reflect.Slice {
			inner, many = inner.Elem(), "[]"
		}
		fmt.Fprintf(b, "%s%s%s\n", prefix, name, many)
		if inner.Kind() == reflect.Struct && inner.NumField() > 0 && inner.Field(0).Tag.Get("expr") != "" && deep == 0 &&
			name != "trigger" && name != "playbooks" {
			writeFieldHelp(b, prefix+name+many+".", inner, deep+1)
		}
	}
}
