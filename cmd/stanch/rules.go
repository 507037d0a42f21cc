package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"stanch/sensors/diagnostic"
	"stanch/sensors/rules"
)

func rulesCommand(g *globalFlags) *cobra.Command {
	c := rulesListCommand(g)
	c.Use, c.Short = "rules", "List, lint and test detection rules"
	c.Args = validateArgs(cobra.NoArgs)
	c.Long = `List the active detection rules: the shipped rules and those of the configuration's directories,
with their overrides. Use lint and test while you write a rule pack.

A rule pack adds rules, and overrides shipped rules without copying them:

  overrides:
    - rule: terminal-shell            # or the name in Falco, "Terminal shell in container"
      exceptions:
        - namespace: [ci]
          workload: { kind: Deployment, name: "runner-*" }
          reason: engineers debug builds there

` + "`stanch schema rules`" + ` documents every key. A running Stanch instance reloads packs when they change.`
	c.Example = `  stanch rules
  stanch rules lint my-rules/
  stanch rules test my-rules/ --events recorded_events.jsonl`
	c.AddCommand(rulesListCommand(g), rulesLintCommand(g), rulesTestCommand(g))
	return c
}

// ruleSources selects rule packs: those of paths, after the shipped ones and those of the configuration.
type ruleSources struct {
	paths     []string // files and directories of packs
	noShipped bool
}

// resolve returns the sources in the order in which they are loaded. If there are paths, problems of the other
// sources are suppressed.
func (s ruleSources) resolve(g *globalFlags) ([]rules.PackSource, error) {
	var out []rules.PackSource
	if !s.noShipped {
		out = append(out, rules.ShippedSource())
	}
	cfg, err := g.loadConfig()
	if err != nil {
		return nil, err
	}
	for _, dir := range cfg.Rules {
		if !pathsOverlap(dir, s.paths) {
			out = append(out, rules.PackSource{FS: os.DirFS(dir), Name: dir})
		}
	}
	for i := range out {
		out[i].SuppressProblems = len(s.paths) > 0
	}
	for _, path := range s.paths {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return nil, fmt.Errorf("read rules: no such file or directory: %s", path)
		case info.IsDir():
			out = append(out, rules.PackSource{FS: os.DirFS(path), Name: path})
		default:
			dir, file := filepath.Split(path)
			dir = filepath.Clean(dir)
			out = append(out, rules.PackSource{FS: os.DirFS(dir), Name: strings.TrimSuffix(dir, "."), Files: []string{file}})
		}
	}
	return out, nil
}

// pathsOverlap reports whether dir is or contains one of the paths.
func pathsOverlap(dir string, paths []string) bool {
	for _, path := range paths {
		if rel, err := filepath.Rel(absolutePath(dir), absolutePath(path)); err == nil && !strings.HasPrefix(rel, "..") {
			return true
		}
	}
	return false
}

// absolutePath returns path as an absolute path, or unchanged if the working directory is unknown.
func absolutePath(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// printRuleProblems prints problems with the source lines that they are about.
func printRuleProblems(out io.Writer, problems diagnostic.Diagnostics) {
	sources := map[string][]byte{} // without its lines for a file that cannot be read again
	for _, p := range problems {
		if _, read := sources[p.File]; !read {
			if inside, shipped := strings.CutPrefix(p.File, "shipped/"); shipped {
				sources[p.File], _ = rules.ShippedPacks.ReadFile(inside)
			} else {
				sources[p.File], _ = os.ReadFile(p.File)
			}
		}
		fmt.Fprintln(out, escapeLines(p.Render(sources[p.File])))
	}
}
