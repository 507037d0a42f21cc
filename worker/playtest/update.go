package playtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"stanch/playbooks/scenario"
)

// Update rewrites the `expect` of the tests that it failed, with what happened, and gives the files that it changed.
// Nothing else of a file is touched.
func Update(r Report) ([]string, error) {
	var changed []string
	for _, f := range r.Files {
		if f.Problems.HasErrors() {
			continue
		}
		rewrites := map[*scenario.Test]scenario.Happened{}
		for _, t := range f.Tests {
			empty := t.Test.Unwritten() && t.Happened.Error == ""
			if empty || slices.ContainsFunc(t.Failures, func(x scenario.Failure) bool { return x.Expects }) {
				rewrites[t.Test] = t.Happened
			}
		}
		if len(rewrites) == 0 {
			continue
		}
		text, err := scenario.Rewrite(f.Suite.Tests, rewrites)
		if err != nil {
			return changed, fmt.Errorf("update: %w", err)
		}
		if err := replace(f.File, text); err != nil {
			return changed, err
		}
		changed = append(changed, f.File)
	}
	return changed, nil
}

// replace writes a file whole or not at all.
func replace(file string, text []byte) error {
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("update %s: %w", file, err)
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	next, err := os.CreateTemp(filepath.Dir(file), ".update-*")
	if err != nil {
		return fmt.Errorf("update %s: %w", file, err)
	}
	_, err = next.Write(text)
	err = errors.Join(err, next.Chmod(info.Mode().Perm()), next.Close())
	if err == nil {
		err = os.Rename(next.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("update %s: %w", file, err), os.Remove(next.Name()))
	}
	return nil
}
