package playbooktest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"stanch/playbooks/testspec"
	"stanch/sensors/durablefile"
)

// UpdatedFile is a file that UpdateExpectations rewrote, with its original text.
type UpdatedFile struct {
	File         string
	originalText []byte
}

// Restore writes the original text back.
func (u UpdatedFile) Restore() error { return writeFileAtomically(u.File, u.originalText) }

// UpdateExpectations rewrites the `expect` of failed tests with the actual results, and returns the changed files. It
// changes nothing else, and no file with a test that would still fail: the error names the test and the reason.
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
			problems = append(problems, fmt.Errorf("update the expectations: %w", err))
			continue
		}
		changed = append(changed, UpdatedFile{File: f.File, originalText: f.Suite.Tests.Source})
	}
	return changed, errors.Join(problems...)
}

// testsToRewrite returns the tests of a file that rewriting makes pass, or an error if another test fails.
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
			ok = true // it fails only because `expect` is empty
		}
		if !ok {
			problems = append(problems, fmt.Errorf(
				"%s:%d: not updated: %q would still fail: %s; change the test or the playbook manually", f.File, t.Line, t.Name,
				why))
			continue
		}
		rewrites[t.Test] = t.ActualResult
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return rewrites, nil
}

// KeepPassing restores each updated file with a failed test in the report of the run after the update, and returns the
// others.
func KeepPassing(updated []UpdatedFile, after Report) ([]UpdatedFile, error) {
	var kept []UpdatedFile
	var problems []error
	for _, u := range updated {
		i := slices.IndexFunc(after.Files, func(f FileResult) bool { return f.File == u.File })
		if i >= 0 && !after.Files[i].Problems.HasErrors() && !slices.ContainsFunc(after.Files[i].Tests,
			func(t TestResult) bool { return !t.Passed }) {
			kept = append(kept, u)
			continue
		}
		problems = append(problems, fmt.Errorf("%s: not updated: its tests would still fail; change it manually", u.File),
			u.Restore())
	}
	return kept, errors.Join(problems...)
}

// writeFileAtomically writes a file completely or not at all.
func writeFileAtomically(file string, text []byte) error {
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("update %s: %w", file, err)
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		return fmt.Errorf("update the expectations: %w", err)
	}
	if err := durablefile.Write(file, text, info.Mode().Perm()); err != nil {
		return fmt.Errorf("update %s: %w", file, err)
	}
	return nil
}
