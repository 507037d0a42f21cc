package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"stanch/worker/actions"
	"stanch/worker/config"
	"stanch/worker/playbookstore"
)

// setConfig sets the configuration of the installation, and the phase unless --phase is given.
func (o *manifestsOptions) setConfig(cmd *cobra.Command, g *globalFlags) error {
	cfg, err := g.loadConfig()
	if err != nil {
		return err
	}
	if g.configFile != "" {
		raw, err := os.ReadFile(g.configFile)
		if err != nil {
			return fmt.Errorf("read the configuration: %w", err)
		}
		if err := o.setPhase(cmd, g.configFile, raw); err != nil {
			return err
		}
		o.Config = string(raw)
		if err := o.setUserFiles(cfg); err != nil {
			return err
		}
	}
	if !o.valuesOnly && !o.actionsInUse {
		return nil
	}
	o.Actions, err = findActionsInUse(cfg)
	return err
}

// setPhase sets the phase from the configuration file, if it has one. An installation has one phase.
func (o *manifestsOptions) setPhase(cmd *cobra.Command, file string, raw []byte) error {
	var in struct {
		Phase int `yaml:"phase"`
	}
	if err := yaml.Unmarshal(raw, &in); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if in.Phase == 0 || in.Phase == o.Phase {
		return nil
	}
	if cmd.Flags().Changed("phase") {
		return usageError{fmt.Errorf("print the manifests: %s sets phase %d, which is not --phase %d; use the same phase "+
			"in both, or remove it from the file", file, in.Phase, o.Phase)}
	}
	o.Phase = in.Phase
	return nil
}

// setUserFiles sets the playbooks and rule packs of the configuration's directories, which do not exist in a pod.
func (o *manifestsOptions) setUserFiles(cfg *config.Config) error {
	own, err := playbookstore.UserPlaybooks(cfg)
	if err != nil {
		return err
	}
	playbookFiles := map[string]string{}
	for _, s := range own {
		if err := addUserFile(playbookFiles, s.File, s.Content); err != nil {
			return err
		}
	}
	ruleFiles := map[string]string{}
	for _, dir := range cfg.Rules {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list rule packs in %s: %w", dir, err)
		}
		for _, e := range entries {
			ext := filepath.Ext(e.Name())
			if e.IsDir() || strings.HasPrefix(e.Name(), ".") || ext != ".yaml" && ext != ".yml" {
				continue
			}
			raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return fmt.Errorf("read a rule pack: %w", err)
			}
			if err := addUserFile(ruleFiles, filepath.Join(dir, e.Name()), raw); err != nil {
				return err
			}
		}
	}
	o.Playbooks, o.Rules = playbookFiles, ruleFiles
	return nil
}

// addUserFile adds a file by the name that it will have in the cluster, where all files are in one directory.
func addUserFile(files map[string]string, path string, raw []byte) error {
	name := filepath.Base(path)
	if filepath.Ext(name) != ".yaml" {
		return fmt.Errorf("print the manifests: %s: invalid file name; the chart accepts only *.yaml", path)
	}
	if _, twice := files[name]; twice {
		return fmt.Errorf("print the manifests: %s: another directory has a file with this name; rename one, since in "+
			"the cluster all files are in one directory", path)
	}
	files[name] = string(raw)
	return nil
}

// findActionsInUse returns the actions that an installation with this configuration can run. Invalid playbooks are
// errors: the worker would not use them now, and would lack their permissions once they are fixed.
func findActionsInUse(cfg *config.Config) ([]string, error) {
	library, problems, err := playbookstore.Open(cfg, actions.Catalog())
	if err != nil {
		return nil, fmt.Errorf("load the playbooks: %w", err)
	}
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, escapeForTerminal(p.String()))
	}
	if problems.HasErrors() {
		return nil, errors.New("load the playbooks: invalid playbooks; `stanch validate` explains their errors")
	}
	return library.ActionsInUse(), nil
}
