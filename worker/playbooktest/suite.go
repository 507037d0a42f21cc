// Package playbooktest runs tests of playbooks: the production workflow code on invented or recorded incidents, with
// fake results of actions.
//
// It has no effects, like simulation, and reads no files outside the given directories.
package playbooktest

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/playbooks/recording"
	"stanch/playbooks/testspec"
	"stanch/sensors/diagnostic"
)

const (
	maxTestFiles     = 10_000
	maxTestFileBytes = 1 << 20 // bytes of one file
)

// Suite is one test file with the playbooks under test. It can run if it has no problems.
type Suite struct {
	File                string
	Tests               *testspec.TestFile
	Playbooks           []*playbooks.Program
	Problems            diagnostic.Diagnostics
	sourcesWithProblems map[string][]byte // text of files with problems, by file
	recordings          map[string]recording.Recording
}

// SourceOf returns the text of a file with problems.
func (s *Suite) SourceOf(file string) []byte { return s.sourcesWithProblems[file] }

// FindTestFiles returns the given test files, and those in and below the given directories. It follows links only
// inside these directories.
func FindTestFiles(paths []string) ([]string, error) {
	var out []string
	for _, path := range paths {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return nil, fmt.Errorf("no such file or directory: %s", path)
		case !info.IsDir() && !strings.HasSuffix(path, testspec.TestFileSuffix):
			return nil, fmt.Errorf("%s is not a test file; test files end with %s; `stanch validate` checks playbooks", path,
				testspec.TestFileSuffix)
		case !info.Mode().IsRegular() && !info.IsDir():
			return nil, fmt.Errorf("%s is not a regular file", path)
		case !info.IsDir():
			out = append(out, path)
			continue
		}
		root, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(p, testspec.TestFileSuffix) {
				return err
			}
			if isInsideRoot(root, p) {
				out = append(out, p)
			}
			if len(out) > maxTestFiles {
				return fmt.Errorf("more than %d test files", maxTestFiles)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) == 0 {
		return nil, fmt.Errorf("no tests (*%s) in %s; add one next to a playbook (`stanch test --help` shows how)",
			testspec.TestFileSuffix, strings.Join(paths, ", "))
	}
	return out, nil
}

// isInsideRoot reports whether a path, with links resolved, is a regular file below root.
func isInsideRoot(root, path string) bool {
	followed, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(root, followed)
	if err != nil || !filepath.IsLocal(rel) {
		return false
	}
	info, err := os.Stat(followed)
	return err == nil && info.Mode().IsRegular()
}

// LoadSuite loads a test file and the files that it references. Errors in them are in the suite's problems.
func LoadSuite(file string, catalog playbooks.Catalog) (*Suite, error) {
	raw, err := readBoundedFile(file, maxTestFileBytes)
	if err != nil {
		return nil, err
	}
	s := &Suite{
		File: file, sourcesWithProblems: map[string][]byte{file: raw},
		recordings: map[string]recording.Recording{},
	}
	s.Tests, s.Problems = testspec.ParseTestFile(file, raw)
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("read the directory of %s: %w", file, err)
	}
	defer func() { _ = root.Close() }()
	if err := s.loadPlaybooks(root, catalog); err != nil {
		return nil, err
	}
	if len(s.Problems) == 0 {
		s.Problems = testspec.CheckTestFile(s.Tests, s.Playbooks, catalog)
	}
	for _, t := range s.Tests.Tests {
		s.loadRecording(root, t.RecordingFile)
	}
	return s, nil
}

func (s *Suite) errorf(at testspec.Pos, code, hint, format string, args ...any) {
	s.Problems = append(s.Problems, diagnostic.Diagnostic{
		File: s.File, Line: max(at.Line, 1), Column: max(at.Column, 1), Severity: "error", Code: code,
		Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// loadPlaybooks loads the playbooks under test.
func (s *Suite) loadPlaybooks(root *os.Root, catalog playbooks.Catalog) error {
	dir := filepath.Dir(s.File)
	beside, err := listPlaybooks(dir)
	if err != nil {
		return err
	}
	tested := s.Tests.Playbooks
	if len(tested) == 0 {
		if tested = beside; len(tested) == 0 {
			s.errorf(testspec.Pos{}, "no-playbook", "name it: `playbook: FILE`", "no playbook in %s", dir)
		}
	}
	// A playbook under test may call the others in its directory.
	sources, names := []playbooks.SourceFile{}, map[string]string{}
	want := map[string]bool{}
	for i, ref := range slices.Concat(tested, beside) {
		file := filepath.Join(dir, ref.Name)
		if _, known := s.sourcesWithProblems[file]; known {
			continue
		}
		source, err := readInsideRoot(root, "playbook", ref.Name, playbooks.MaxFileBytes)
		if err != nil {
			if i < len(tested) {
				s.errorf(ref.Pos, "no-playbook", "use the path relative to the test file", "%v", err)
			}
			continue
		}
		book, _ := playbooks.ParsePlaybook(file, source)
		first, twice := names[book.Name]
		switch {
		case twice && i < len(tested):
			s.errorf(ref.Pos, "duplicate-name", "choose another name", "%s and %s both have the name `%s`", first, file,
				book.Name)
			continue
		case twice:
			continue
		}
		names[book.Name], want[file] = file, i < len(tested)
		s.sourcesWithProblems[file] = source
		sources = append(sources, playbooks.SourceFile{File: file, Content: source, Shipped: library.IsShipped(source)})
	}
	programs, problems := playbooks.LoadPlaybooks(sources, catalog)
	for _, p := range programs {
		if want[p.File] {
			s.Playbooks = append(s.Playbooks, p)
		}
	}
	for _, p := range problems {
		if p.Severity == "error" && want[p.File] {
			s.Problems = append(s.Problems, p)
		}
	}
	// A playbook under test without a program calls an invalid one.
	if len(s.Problems) == 0 && len(s.Playbooks) < countTrue(want) {
		s.Problems = append(s.Problems, problems...)
	}
	return nil
}

func countTrue(set map[string]bool) int {
	n := 0
	for _, in := range set {
		if in {
			n++
		}
	}
	return n
}

// listPlaybooks returns the playbook files of a directory.
func listPlaybooks(dir string) ([]testspec.FileRef, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the directory %s: %w", dir, err)
	}
	var out []testspec.FileRef
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") &&
			!strings.HasSuffix(e.Name(), testspec.TestFileSuffix) {
			out = append(out, testspec.FileRef{Name: e.Name()})
		}
	}
	return out, nil
}

// readInsideRoot reads a file in a directory. It returns an error for a path that leads out of it.
func readInsideRoot(root *os.Root, what, path string, most int64) ([]byte, error) {
	if !filepath.IsLocal(path) {
		return nil, fmt.Errorf("%s is outside of the test directory", path)
	}
	info, err := root.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no such %s: %s", what, path)
	case err != nil:
		return nil, fmt.Errorf("%s cannot be read, or points outside of the test directory", path)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := root.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read", path)
	}
	defer func() { _ = f.Close() }()
	return readLimited(f, path, most)
}

// loadRecording loads a recording that a test references.
func (s *Suite) loadRecording(root *os.Root, ref testspec.FileRef) {
	if _, known := s.recordings[ref.Name]; known || ref.Name == "" {
		return
	}
	raw, err := readInsideRoot(root, "recording", ref.Name, recording.MaxBytes)
	if err != nil {
		s.errorf(ref.Pos, "no-recording",
			"put the recording in the test directory or a subdirectory; `stanch record ID > FILE` creates one", "%v", err)
		return
	}
	r, err := recording.Decode(raw)
	if err != nil {
		s.errorf(ref.Pos, "no-recording", "", "%s: %v", ref.Name, err)
		return
	}
	s.recordings[ref.Name] = r
}

func readBoundedFile(file string, most int64) ([]byte, error) {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, fmt.Errorf("no such file: %s", file)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	defer func() { _ = f.Close() }()
	return readLimited(f, file, most)
}

// readLimited reads at most one byte more than the limit; the parser then reports that the file is too large.
func readLimited(f io.Reader, name string, most int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return raw, nil
}

// sortProblems sorts problems by file and line.
func sortProblems(ds diagnostic.Diagnostics) diagnostic.Diagnostics {
	slices.SortStableFunc(ds, func(a, b diagnostic.Diagnostic) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return ds
}
