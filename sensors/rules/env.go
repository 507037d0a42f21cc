package rules

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/expr-lang/expr"

	"stanch/sensors"
	"stanch/sensors/expression"
)

// conditionEnv contains the variables of a condition. It is reused: the pointers refer to its own copy of the event.
type conditionEnv struct {
	Process     *sensors.Process   `expr:"process"`
	Container   *sensors.Container `expr:"container"`
	File        *sensors.File      `expr:"file"`
	Network     *sensors.Network   `expr:"network"`
	Syscall     *sensors.Syscall   `expr:"syscall"`
	Baseline    *sensors.Baseline  `expr:"baseline"`
	Audit       *sensors.Audit     `expr:"audit"`
	Cloud       *sensors.Cloud     `expr:"cloud"`
	ExitCode    int                `expr:"exit_code"`
	Count       int                `expr:"count"`
	Actor       string             `expr:"actor"`
	Exe         string             `expr:"exe"`          // the name of the executable
	Parent      string             `expr:"parent"`       // the name of the parent's executable, or its comm
	Command     string             `expr:"command"`      // the arguments, joined by spaces
	InContainer bool               `expr:"in_container"` // whether the event is in a container

	event                         sensors.Event
	hasExe, hasParent, hasCommand bool
	textElement                   string            // the current element of a list in a predicate
	ancestorElement               *sensors.Ancestor // the current ancestor in a predicate
	evaluator                     expression.Evaluator
}

func newConditionEnv() *conditionEnv {
	v := &conditionEnv{}
	v.Process, v.Container, v.File, v.Network, v.Syscall, v.Baseline = &v.event.Process, &v.event.Container, &v.event.File,
		&v.event.Network, &v.event.Syscall, &v.event.Baseline
	v.Audit, v.Cloud = &v.event.Audit, &v.event.Cloud
	return v
}

func (v *conditionEnv) setEvent(e sensors.Event) {
	v.event = e
	v.ExitCode, v.Count, v.Actor, v.InContainer = e.ExitCode, e.Count, e.Actor, e.InContainer()
	v.hasExe, v.hasParent, v.hasCommand = false, false, false
}

// exeName, parentName and commandLine compute their value when a condition first reads it.
func (v *conditionEnv) exeName() string {
	if !v.hasExe {
		v.Exe, v.hasExe = v.event.Process.ExeName(), true
	}
	return v.Exe
}

func (v *conditionEnv) parentName() string {
	if !v.hasParent {
		v.Parent, v.hasParent = "", true
		if above := v.event.Process.Ancestors; len(above) > 0 {
			v.Parent = above[0].ExeName()
		}
	}
	return v.Parent
}

func (v *conditionEnv) commandLine() string {
	if !v.hasCommand {
		v.Command, v.hasCommand = strings.Join(v.event.Process.Args, " "), true
	}
	return v.Command
}

// fillAll computes all lazy values, for readers that access the fields directly.
func (v *conditionEnv) fillAll() *conditionEnv {
	v.exeName()
	v.parentName()
	v.commandLine()
	return v
}

// EgressAnnotation is the pod annotation that declares the pod's allowed destinations: a comma-separated list of
// addresses and CIDRs, each optionally with a port ("10.0.0.0/8, 192.0.2.7:443").
const EgressAnnotation = "stanch.dev/egress"

// Function is a function that conditions may call in addition to the builtins of package expression.
type Function struct {
	Name, Doc  string
	impl       func(args ...any) (any, error)
	signatures []any
}

// Functions returns the functions that conditions may call in addition to the builtins.
func Functions() []Function {
	return []Function{
		{"cidr", "cidr(address, \"10.0.0.0/8\"): whether the address is in the network", func(args ...any) (any, error) {
			prefix, err := netip.ParsePrefix(args[1].(string))
			if err != nil {
				return nil, fmt.Errorf("cidr: %w", err)
			}
			return isInNetwork(args[0].(string), prefix), nil
		}, []any{new(func(string, string) bool)}},
		{"base", "base(path): the last part of the path", func(args ...any) (any, error) {
			return path.Base(args[0].(string)),
				nil
		}, []any{new(func(string) string)}},
		{
			"contains_any", "contains_any(text, list): whether the text contains one of the strings in the list",
			func(args ...any) (any, error) {
				words, ok := args[1].([]string)
				if !ok { // a list literal
					for _, word := range args[1].([]any) {
						if word, ok := word.(string); ok {
							words = append(words, word)
						}
					}
				}
				return containsAny(args[0].(string), words), nil
			},
			[]any{new(func(string, []string) bool), new(func(string, []any) bool)},
		},
		{"program", "program(ancestor): the base name of the ancestor's executable", func(args ...any) (any, error) {
			a := args[0].(sensors.Ancestor)
			return a.ExeName(), nil
		}, []any{new(func(sensors.Ancestor) string)}},
		{
			"has_bits",
			"has_bits(number, mask): whether all bits of the mask are set, as in has_bits(syscall.flags, 0x10000000)",
			func(args ...any) (any, error) {
				mask := args[1].(int)
				return toInt(args[0])&mask == mask, nil
			},
			[]any{new(func(any, int) bool)},
		},
		{
			"egress_declared", "egress_declared(container): whether the pod has the annotation " + EgressAnnotation,
			func(args ...any) (any, error) {
				_, ok := args[0].(*sensors.Container).Pod.Annotations[EgressAnnotation]
				return ok, nil
			},
			[]any{new(func(*sensors.Container) bool)},
		},
		{
			"egress_allowed", "egress_allowed(container, network): whether the annotation contains the destination",
			func(args ...any) (any, error) {
				return isEgressAllowed(args[0].(*sensors.Container).Pod.Annotations[EgressAnnotation], args[1].(*sensors.Network)),
					nil
			},
			[]any{new(func(*sensors.Container, *sensors.Network) bool)},
		},
	}
}

func toInt(v any) int {
	switch r := reflect.ValueOf(v); {
	case r.CanInt():
		return int(r.Int())
	case r.CanUint():
		return int(r.Uint())
	}
	return 0
}

func isInNetwork(address string, prefix netip.Prefix) bool {
	addr, err := netip.ParseAddr(address)
	return err == nil && prefix.Contains(addr) // an invalid address, which an attacker may send, is in no network
}

func containsAny(text string, words []string) bool {
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) })
}

func isEgressAllowed(declared string, n *sensors.Network) bool {
	addr, err := netip.ParseAddr(n.Address)
	if err != nil {
		return false
	}
	for entry := range strings.SplitSeq(declared, ",") {
		entry = strings.TrimSpace(entry)
		if i := strings.LastIndexByte(entry, ':'); i > 0 && !strings.Contains(entry[:i], ":") {
			if port, err := strconv.ParseUint(entry[i+1:], 10, 16); err != nil || uint16(port) != n.Port {
				continue
			}
			entry = entry[:i]
		}
		if prefix, err := netip.ParsePrefix(entry); err == nil && prefix.Contains(addr) {
			return true
		}
		if one, err := netip.ParseAddr(entry); err == nil && one == addr {
			return true
		}
	}
	return false
}

// envNames returns the names of the variables in conditions.
func envNames() []string {
	return slices.Sorted(maps.Keys(exprFieldTypes(reflect.TypeFor[conditionEnv]())))
}

// reservedNames returns the names that a list or macro may not have.
func reservedNames() []string {
	out := slices.Concat(envNames(), expression.Builtins(), []string{
		"true", "false", "nil", "not", "and", "or", "in",
		"let", "if", "else", "matches", "contains",
	})
	for _, f := range Functions() {
		out = append(out, f.Name)
	}
	return out
}

// exprFieldTypes returns the fields of a struct by their names in conditions.
func exprFieldTypes(t reflect.Type) map[string]reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		if name := f.Tag.Get("expr"); f.IsExported() && name != "" && name != "-" {
			out[name] = f.Type
		}
	}
	return out
}

// compileOptions returns the expr options for lists (as constants), macros and functions.
func (l *loader) compileOptions() []expr.Option {
	out := []expr.Option{expr.AsBool(), expr.Patch(&listPatcher{l}), expr.Patch(&macroPatcher{loader: l})}
	for _, f := range Functions() {
		out = append(out, expr.Function(f.Name, f.impl, f.signatures...))
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
