package main

import (
	"errors"
	"fmt"

	"github.com/invopop/jsonschema"
	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/playbooks/testspec"
	"stanch/sensors/rules"
	"stanch/worker/actions"
	"stanch/worker/api"
	"stanch/worker/config"
)

func requireOneSchemaName(_ *cobra.Command, names []string) error {
	if len(names) != 1 {
		return errors.New("one schema name is required: playbook, test, rules, config, incident or recording")
	}
	return nil
}

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema playbook|test|rules|config|incident|recording", Short: "Print the JSON Schema of a file format",
		Args: validateArgs(requireOneSchemaName),
		Long: `Print the JSON Schema of a file format, for editors and pipelines. An editor with the YAML
language server completes and checks a file that begins with:

  # yaml-language-server: $schema=playbook.schema.json`,
		ValidArgs: []string{"playbook", "test", "rules", "config", "incident", "recording"},
		Example:   "  stanch schema playbook > playbook.schema.json\n  stanch schema test > test.schema.json",
		RunE: func(cmd *cobra.Command, a []string) error {
			reflector := &jsonschema.Reflector{RequiredFromJSONSchemaTags: true}
			var schema any
			switch a[0] {
			case "playbook":
				schema = playbooks.PlaybookSchema(actions.Catalog())
			case "test":
				schema = testspec.Schema()
			case "rules":
				schema = rules.Schema()
			case "config":
				schema = reflector.Reflect(config.Config{})
			case "incident":
				schema = reflector.Reflect(api.IncidentView{}) // the output of `stanch incidents ID -o json`
			case "recording":
				schema = recording.Schema()
			default:
				return usageError{fmt.Errorf("unknown schema %q; use playbook, test, rules, config, incident or "+
					"recording", a[0])}
			}
			return printJSON(cmd.OutOrStdout(), schema)
		},
	}
}
