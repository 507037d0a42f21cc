package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"

	"stanch/sensors"
	"stanch/sensors/condition"
)

// env is what a condition may name.
type env struct {
	Process   sensors.Process   `expr:"process"`
	Container sensors.Container `expr:"container"`
	File      sensors.File      `expr:"file"`
	Network   sensors.Network   `expr:"network"`
	Call      sensors.Call      `expr:"call"`
	Baseline  sensors.Baseline  `expr:"baseline"`
	ExitCode  int               `expr:"exit_code"`
	Count     int               `expr:"count"`
	Exe       string            `expr:"exe"`    // the executed file's own name
	Parent    string            `expr:"parent"` // the parent's executable's name, or its comm
	Command   string            `expr:"command"`
	Contained bool              `expr:"contained"` // in a container
	event     *sensors.Event
}

func newEnv(e *sensors.Event) env {
	v := env{
		Process: e.Process, Container: e.Container, File: e.File, Network: e.Network, Call: e.Call, Baseline: e.Baseline, ExitCode: e.ExitCode, Count: e.Count,
		Exe: e.Process.ExeName(), Command: strings.Join(e.Process.Args, " "), Contained: e.InContainer(), event: e,
	}
	if len(e.Process.Ancestors) > 0 {
		v.Parent = e.Process.Ancestors[0].ExeName()
	}
	return v
}

// EgressAnnotation on a pod declares where it may connect: a comma-separated list of ADDRESS, CIDR, with :PORT
// behind where only one port is meant ("10.0.0.0/8, 192.0.2.7:443").
const EgressAnnotation = "stanch.dev/egress"

// options are the lists, put in as constants where they are named, the macros, and the few functions that rules have.
func (l *loader) options() []expr.Option {
	return []expr.Option{
		expr.AsBool(),
		expr.Patch(&listPatcher{l.lists}),
		expr.Patch(&macroPatcher{l: l}),
		expr.Function("cidr", func(args ...any) (any, error) {
			addr, err := netip.ParseAddr(args[0].(string))
			if err != nil {
				return false, nil //nolint:nilerr // an attacker's string that is no address is in no network
			}
			prefix, err := netip.ParsePrefix(args[1].(string))
			if err != nil {
				return nil, fmt.Errorf("cidr: %w", err)
			}
			return prefix.Contains(addr), nil
		}, new(func(string, string) bool)),
		expr.Function("program", func(args ...any) (any, error) {
			a := args[0].(sensors.Ancestor)
			return a.ExeName(), nil
		}, new(func(sensors.Ancestor) string)),
		expr.Function("base", func(args ...any) (any, error) { return path.Base(args[0].(string)), nil }, new(func(string) string)),
		expr.Function("contains_any", func(args ...any) (any, error) {
			text := args[0].(string)
			switch words := args[1].(type) {
			case []string:
				for _, word := range words {
					if strings.Contains(text, word) {
						return true, nil
					}
				}
			case []any: // a list in brackets
				for _, word := range words {
					if word, ok := word.(string); ok && strings.Contains(text, word) {
						return true, nil
					}
				}
			}
			return false, nil
		}, new(func(string, []string) bool), new(func(string, []any) bool)),
		expr.Function("egress_declared", func(args ...any) (any, error) {
			_, ok := args[0].(sensors.Container).Pod.Annotations[EgressAnnotation]
			return ok, nil
		}, new(func(sensors.Container) bool)),
		expr.Function("egress_allowed", func(args ...any) (any, error) {
			return egressAllowed(args[0].(sensors.Container).Pod.Annotations[EgressAnnotation], args[1].(sensors.Network)), nil
		}, new(func(sensors.Container, sensors.Network) bool)),
	}
}

func egressAllowed(declared string, n sensors.Network) bool {
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

type listPatcher struct{ lists map[string][]string }

func (p *listPatcher) Visit(node *ast.Node) {
	id, ok := (*node).(*ast.IdentifierNode)
	if !ok {
		return
	}
	if values, ok := p.lists[id.Value]; ok {
		ast.Patch(node, &ast.ConstantNode{Value: values})
	}
}

func (r *Rule) fires(e env) (bool, error) {
	out, err := condition.Run(r.condition, e)
	if err != nil || out != true {
		return false, err
	}
	for _, exception := range r.exceptions {
		out, err := condition.Run(exception, e)
		if err != nil {
			return false, err
		}
		if out == true {
			return false, nil
		}
	}
	return true, nil
}

// Evaluate gives the detections of one event. A rule that fails on an event does not keep others from it; the
// errors of all are returned beside what fired.
func (s *Set) Evaluate(event sensors.Event) ([]sensors.Detection, []error) {
	candidates := s.byKind[event.Kind]
	if len(candidates) == 0 {
		return nil, nil
	}
	e := newEnv(&event)
	var out []sensors.Detection
	var errs []error
	for _, r := range candidates {
		fired, err := r.fires(e)
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %s on event %s: %w", r.Name, event.ID, err))
		}
		if fired {
			out = append(out, r.detection(event))
		}
	}
	return out, errs
}

func (r *Rule) detection(event sensors.Event) sensors.Detection {
	sum := sha256.Sum256([]byte(event.ID + "\x00" + r.Name))
	return sensors.Detection{
		ID: hex.EncodeToString(sum[:12]), Rule: r.Name, Title: r.Title, Severity: r.Severity, Confidence: r.Confidence,
		Objective: r.Objective, Technique: r.Technique, Reasons: []string{r.Reason}, Source: "stanch",
		Time: event.Time, Node: event.Node, Event: event,
	}
}

// Find gives the rule of a name: its own, or a stable name of Falco's that it carries as an alias. Nil if there is none.
func (s *Set) Find(name string) *Rule {
	for _, r := range s.rules {
		if r.Name == name {
			return r
		}
	}
	for _, r := range s.rules {
		if slices.ContainsFunc(r.Aliases, func(alias string) bool { return strings.EqualFold(alias, name) }) {
			return r
		}
	}
	return nil
}

// Names lists the rules' names in order.
func (s *Set) Names() []string {
	names := make([]string, 0, len(s.rules))
	for _, r := range s.rules {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	return names
}
