package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/sensors/diagnostic"
	"stanch/worker/actions"
)

// toSources returns the contents of files as sources.
func toSources(files []string, sources map[string][]byte) []playbooks.SourceFile {
	var out []playbooks.SourceFile
	for _, file := range files {
		out = append(out, playbooks.SourceFile{File: file, Content: sources[file]})
	}
	return out
}

// loadValidated loads files, which may call each other, together with the playbooks of the library.
func loadValidated(files []string, sources map[string][]byte) ([]*playbooks.Program, diagnostic.Diagnostics) {
	all := library.PlaybookSources()
	for _, file := range files {
		all = append(all, playbooks.SourceFile{File: file, Content: sources[file]})
	}
	return playbooks.LoadPlaybooks(all, actions.Catalog())
}

// escapeLines escapes every line of s for the terminal, and keeps the line breaks.
func escapeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = escapeForTerminal(lines[i])
	}
	return strings.Join(lines, "\n")
}

// findYAMLFiles returns the playbook files of paths, searching directories recursively. It leaves out test files of
// directories, and returns an error for a test file that is named itself.
func findYAMLFiles(paths []string) ([]string, error) {
	var files []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("read playbooks: no such file or directory: %s", path)
		}
		if !info.IsDir() && strings.HasSuffix(path, "_test.yaml") {
			return nil, fmt.Errorf("read playbooks: %s is a test file; run it with `stanch test %s`", path, path)
		}
		if !info.IsDir() {
			files = append(files, path)
			continue
		}
		err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && (strings.HasSuffix(p, ".yaml") || strings.HasSuffix(p, ".yml")) &&
				!strings.HasSuffix(p, "_test.yaml") {
				files = append(files, p)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("read playbooks: no *.yaml file in %s", strings.Join(paths, ", "))
	}
	return files, nil
}
