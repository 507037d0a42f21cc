package playbooktest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"stanch/playbooks/testspec"
)

// UpdatedFile is a file that Update rewrote, with what it was before.
type UpdatedFile struct {
	File         string
	originalText []byte
}

// Restore writes back what the file was.
func (u UpdatedFile) Restore() error { return writeFileAtomically(u.File, u.originalText) }

// UpdateExpectations rewrites the `expect` of the tests that failed with what happened, and gives the files that it changed. Nothing
// else of a file is touched, and no file in which a test would fail all the same: the error says which, and why.
func UpdateExpectations(r Report) ([]UpdatedFile, error) {
	var changed []UpdatedFile
	var problems []error
	for _, f := range r.Files {
		if f.Problems.HasErrors() {
			continue
		}
		rewrites, err := testsToRewrite(f)
		if err != nil || len(rewrites) == 0 {
			problems = append(problems, err)
			continue
		}
		text, err := testspec.RewriteExpectations(f.Suite.Tests, rewrites)
		if err == nil {
			err = writeFileAtomically(f.File, text)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("update: %w", err))
			continue
		}
		changed = append(changed, UpdatedFile{File: f.File, originalText: f.Suite.Tests.Source})
	}
	return changed, errors.Join(problems...)
}

// testsToRewrite are the tests of a file that can be made to pass; an error if another one fails.
func testsToRewrite(f FileResult) (map[*testspec.TestCase]testspec.Result, error) {
	rewrites := map[*testspec.TestCase]testspec.Result{}
	var problems []error
	for _, t := range f.Tests {
		unwritten := t.Test.HasEmptyExpect() && t.ActualResult.Error == ""
		if t.Passed && !unwritten {
			continue
		}
		ok, why := testspec.CanFixByRewriting(t.Failures)
		if unwritten && slices.ContainsFunc(t.Failures, func(x testspec.Failure) bool { return x.Line == t.Line }) {
			ok = true // it fails because nothing is expected yet
		}
		if !ok {
			problems = append(problems, fmt.Errorf("%s:%d: not updated: %q would fail all the same: %s; change the test or the playbook by hand", f.File, t.Line, t.Name, why))
			continue
		}
		rewrites[t.Test] = t.ActualResult
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return rewrites, nil
}

// KeepPassing restores each updated file of which a test fails in the report of the run after the update, and gives the others.
func KeepPassing(updated []UpdatedFile, after Report) ([]UpdatedFile, error) {
	var kept []UpdatedFile
	var problems []error
	for _, u := range updated {
		i := slices.IndexFunc(after.Files, func(f FileResult) bool { return f.File == u.File })
		if i >= 0 && !after.Files[i].Problems.HasErrors() && !slices.ContainsFunc(after.Files[i].Tests, func(t TestResult) bool { return !t.Passed }) {
			kept = append(kept, u)
			continue
		}
		problems = append(problems, fmt.Errorf("%s: not updated: its tests would fail all the same; change it by hand", u.File), u.Restore())
	}
	return kept, errors.Join(problems...)
}

// writeFileAtomically writes a file whole or not at all.
func writeFileAtomically(file string, text []byte) error {
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
