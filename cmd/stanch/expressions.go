package main

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/sensors/expression"
)

// expressionsHelpTopic is the help about expressions: `stanch help expressions`.
func expressionsHelpTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString(`Expressions stand behind when, if, target, foreach and until, and inside of ${…} in texts and parameters.
They are those of expr (https://expr-lang.org), compiled and type-checked before anything runs.

  compare     ==  !=  <  <=  >  >=  in  contains  startsWith  endsWith  matches
  combine     &&  ||  !   (or: and, or, not)   cond ? a : b   a ?? b
  texts       "in double or single quotes"; in YAML put an expression with : # ! or { into quotes as a whole
  lists       incident.targets[0]   filter(incident.targets, .name == "web")   any(incident.detections, .rule == "drift")
              .field is that of the element that is looked at; # is the element itself

Known are:
  incident          as it was when the playbook matched
  live              only in until: the incident as it is now
  inputs.NAME       an input of the playbook
  ID.outcome        of a step before: changed, unverified, unchanged, proposed, denied, refused, failed or skipped
  ID.targets        how many targets it had;   ID.failed: those that failed or were refused
  ID.OUTPUT         what it found out (of its first target), where its outcome says that it did: stanch actions NAME

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
	return &cobra.Command{Use: "expressions", Short: "What may stand in expressions: names, functions, fields", Long: strings.TrimRight(b.String(), "\n")}
}

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
		if inner.Kind() == reflect.Struct && inner.NumField() > 0 && inner.Field(0).Tag.Get("expr") != "" && deep == 0 && name != "trigger" && name != "playbooks" {
			writeFieldHelp(b, prefix+name+many+".", inner, deep+1)
		}
	}
}
