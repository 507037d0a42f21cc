package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/invopop/jsonschema"
	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/sensors/diagnostic"
	"stanch/worker/actions"
)

// actionDoc is one action in the output of `stanch actions -o json`.
type actionDoc struct {
	Name                string                           `json:"name"`
	Verb                playbooks.Verb                   `json:"verb"`
	Doc                 string                           `json:"doc"`
	Class               playbooks.Class                  `json:"class"`
	Facet               playbooks.Facet                  `json:"facet,omitempty"`
	Targets             []string                         `json:"targets"`
	Reversible          bool                             `json:"reversible"`
	Params              *jsonschema.Schema               `json:"params,omitempty"`
	Outputs             *jsonschema.Schema               `json:"outputs,omitempty"`
	PlanPermissions     []playbooks.KubernetesPermission `json:"plan_permissions,omitempty"`
	ApplyPermissions    []playbooks.KubernetesPermission `json:"apply_permissions,omitempty"`
	PlanIAMPermissions  []playbooks.IAMPermission        `json:"plan_iam_permissions,omitempty"`
	ApplyIAMPermissions []playbooks.IAMPermission        `json:"apply_iam_permissions,omitempty"`
	D3FEND              string                           `json:"d3fend,omitempty"`
}

func newActionDoc(s playbooks.ActionSpec) actionDoc {
	d := actionDoc{
		Name: s.Name, Verb: s.Verb, Doc: s.Doc, Class: s.Class, Facet: s.Facet, Reversible: s.Reversible,
		PlanPermissions: s.PlanPermissions, ApplyPermissions: s.ApplyPermissions, PlanIAMPermissions: s.PlanIAMPermissions,
		ApplyIAMPermissions: s.ApplyIAMPermissions, D3FEND: s.D3FENDTechnique,
	}
	for _, t := range s.Targets {
		d.Targets = append(d.Targets, string(t))
	}
	reflector := &jsonschema.Reflector{
		Anonymous: true, DoNotReference: true, AllowAdditionalProperties: false,
		RequiredFromJSONSchemaTags: true,
	}
	if s.ParamType() != nil {
		d.Params = reflector.ReflectFromType(s.ParamType())
	}
	if s.OutputType() != nil {
		d.Outputs = reflector.ReflectFromType(s.OutputType())
	}
	return d
}

func actionsCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "actions [NAME]", Short: "List the actions that playbook steps can run, or describe one",
		Args: validateArgs(cobra.MaximumNArgs(1)),
		Long: `List the actions that the steps of a playbook can run. Given a name, describe that
action: its parameters, its outputs, and the
permissions that it requires.`,
		Example: "  stanch actions\n  stanch actions pod.isolate\n  stanch actions -o json",
		RunE: func(cmd *cobra.Command, names []string) error {
			out := cmd.OutOrStdout()
			if len(names) == 1 { // the form of the STEP column: "contain: pod.isolate"
				if _, name, ok := strings.Cut(names[0], ": "); ok {
					names[0] = name
				}
			}
			var docs []actionDoc
			var known []string
			for _, a := range actions.Documentation().Actions() {
				known = append(known, a.Spec().Name)
				if len(names) == 0 || a.Spec().Name == names[0] {
					docs = append(docs, newActionDoc(a.Spec()))
				}
			}
			if len(docs) == 0 {
				hint := diagnostic.DidYouMean(names[0], known)
				if hint == "" {
					hint = "`stanch actions` lists them"
				}
				return fmt.Errorf("unknown action %q; %s", names[0], hint)
			}
			if output == "json" {
				return printJSON(out, docs)
			}
			if len(names) == 1 {
				d := docs[0]
				fmt.Fprintf(out, "%s: %s\n%s\n\nclass %s, targets %s", d.Verb, d.Name, d.Doc, d.Class,
					strings.Join(d.Targets, ", "))
				if d.Reversible {
					fmt.Fprintf(out, ", leases the %s facet (requires the key `for`)", d.Facet)
				}
				fmt.Fprintln(out)
				if t := actions.Catalog()[d.Name].ParamType(); t != nil {
					for f := range t.Fields() {
						name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
						fmt.Fprintf(out, "  %-12s %-8s %s\n", name, f.Type, f.Tag.Get("doc"))
					}
				}
				if t := actions.Catalog()[d.Name].OutputType(); t != nil {
					for f := range t.Fields() {
						if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
							fmt.Fprintf(out, "  output       ID.%-20s %-8s %s\n", name, f.Type, f.Tag.Get("doc"))
						}
					}
				}
				for _, r := range d.ApplyPermissions {
					fmt.Fprintf(out, "  requires     %s %s\n", strings.Join(r.Verbs, ","),
						strings.Join(r.Resources, ","))
				}
				for _, r := range d.ApplyIAMPermissions {
					fmt.Fprintf(out, "  requires IAM %s on %s\n", strings.Join(r.Actions, ","),
						strings.Join(r.Resources, ","))
				}
				return nil
			}
			t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(t, "STEP\tCLASS\tLEASE\tDESCRIPTION")
			for _, d := range docs {
				facet := "-"
				if d.Reversible {
					facet = string(d.Facet)
				}
				fmt.Fprintf(t, "%s: %s\t%s\t%s\t%s\n", d.Verb, d.Name, d.Class, facet, d.Doc)
			}
			return t.Flush()
		},
	}
	addOutputFlag(c, &output)
	return c
}
