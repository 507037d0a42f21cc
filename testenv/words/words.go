// Package words checks how Stanch speaks: strings that users see, pages of HTML, shipped rules and playbooks, and the
// documentation use the field's standard terms instead of the phrases in the table here.
//
// It refuses to judge style. A phrase is in the table only if its replacement is better in every place.
package words

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Finding is one replaced phrase in a text.
type Finding struct {
	File   string // relative to the root of the checkout
	Line   int    // from 1
	Phrase string // as it is in the text
	Use    string // what to write instead
}

// String returns the finding as one line with its place and remedy.
func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %q; write %s", f.File, f.Line, f.Phrase, f.Use)
}

type replacement struct {
	pattern *regexp.Regexp
	use     string
}

func instead(pattern, use string) replacement {
	return replacement{regexp.MustCompile(`(?i)\b(?:` + pattern + `)\b`), use}
}

// replacements are the phrases that were replaced, with the standard term of each.
var replacements = []replacement{
	// Headless and impersonal sentences.
	instead(`is none|are none|is nobody's|is no one's`, `"invalid", "unknown" or "missing"`),
	instead(`is not known|are not known|is not told`, `"is unknown" or "is missing"`),
	instead(`may not (?:be|do|use|read|see|change|answer|approve|run|ask|write|lift|release|break)`,
		`"cannot" or "is not allowed to"`),
	instead(`somebody`, `"another writer", "another process" or "someone"`),
	instead(`by hand(?: of)?`, `"manually"`),
	instead(`of (?:its|their) own accord`, `"automatically"`),
	instead(`what (?:came|comes|stands|lies|goes)`, `the noun: "the artifact", "the state"`),
	instead(`whoever may|who (?:asks|says|runs) it`, `"anyone who can" or the role`),
	// Metaphors for mechanisms.
	instead(`(?:is|are|was|were|be) told|tells? of|told from`, `"reported", "notified" or "reconstructed from"`),
	instead(`heard|hears?`, `"received" or "receives"`),
	instead(`said (?:yes|no)|says? (?:yes|no)`, `"approved" or "denied"`),
	instead(`(?:took|takes?|taken) hold`, `"applied and verified"`),
	instead(`let(?:s|ting)? go`, `"release"`),
	instead(`mend(?:s|ed|ing)?`, `"fix" or "resolve"`),
	instead(`hand(?:s|ed)? on`, `"forward" or "pass"`),
	instead(`(?:is|was|are|were|being) held|holds? for`, `"in force", "applied" or "leased"`),
	instead(`put(?:s|ting)? back|take(?:s|n)? back|took back`, `"restore" or "revert"`),
	instead(`take(?:s|n)? away|took away`, `"remove"`),
	instead(`(?:broke|break|breaks|breaking) the glass`, `"use break-glass"`),
	instead(`goes? otherwise|another shape`, `"differs" or "another format"`),
	instead(`looked at|looks at`, `"examined" or "inspects"`),
	instead(`stood still|stands? still`, `"frozen"`),
	instead(`cut off`, `"truncated", "isolated" or "interrupted"`),
	instead(`comes? (?:too )?late(?:r)?|came (?:too )?late`, `"arrives" or "is late"`),
	instead(`(?:not )?(?:done|answered|finished) in time`, `"timed out after 10s"`),
	instead(`stand-?in`, `"fake"`),
	instead(`pieces? of evidence`, `"evidence artifact"`),
	// Old names.
	instead(`kill[- ]?switch is (?:pulled|thrown)|disarm(?:s|ed)?`, `"paused" or "cleanup"`),
	instead(`Defense Evasion|TA0005`, `the tactic of the current ATT&CK version`),
	instead(`egress lock(?:s)? (?:hold|holds)`, `"is in force"`),
}

// userFacing are the folders whose strings users see.
var userFacing = []string{"sensors", "playbooks", "activities", "workflows", "worker", "cmd", "scripts", "docs"}

// Check returns the replaced phrases in the texts of the checkout at root that users see.
func Check(root string) ([]Finding, error) {
	var out []Finding
	add := func(file string, line int, text string) {
		for _, r := range replacements {
			if m := r.pattern.FindString(text); m != "" && !isAllowed(text, m) {
				out = append(out, Finding{File: file, Line: line, Phrase: m, Use: r.use})
			}
		}
	}
	for _, page := range []string{"README.md", "SECURITY.md"} {
		if err := checkLines(root, page, add); err != nil {
			return nil, err
		}
	}
	for _, dir := range userFacing {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				if entry != nil && entry.IsDir() && entry.Name() == "testdata" {
					return filepath.SkipDir
				}
				return err
			}
			file, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			switch ext := filepath.Ext(file); {
			case strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, ".pb.go"):
				return nil
			case ext == ".go":
				return checkGo(root, file, add)
			case slices.Contains([]string{".md", ".html", ".yaml", ".sh"}, ext):
				return checkLines(root, file, add)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("check %s: %w", dir, err)
		}
	}
	return out, nil
}

// checkGo checks the string literals of a file that have more than one word. Comments are for the people who read the
// code, who see them in review.
func checkGo(root, file string, add func(string, int, string)) error {
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, filepath.Join(root, file), nil, 0)
	if err != nil {
		return err
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		literal, ok := n.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return true
		}
		text, err := strconv.Unquote(literal.Value)
		if err == nil && strings.Contains(strings.TrimSpace(text), " ") {
			for i, line := range strings.Split(text, "\n") {
				add(file, set.Position(literal.Pos()).Line+i, line)
			}
		}
		return true
	})
	return nil
}

// checkLines checks each line of a text file. It skips fenced code blocks of Markdown.
func checkLines(root, file string, add func(string, int, string)) error {
	raw, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		return err
	}
	fenced := false
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		if !fenced || filepath.Ext(file) != ".md" {
			add(file, n, line)
		}
	}
	return lines.Err()
}

// allowed are texts in which a phrase is right.
var allowed = []string{
	"defense evasion", // as rules of other sensors name the tactic
}

func isAllowed(text, phrase string) bool {
	return slices.ContainsFunc(allowed, func(a string) bool {
		return strings.Contains(a, phrase) &&
			strings.Contains(text, a)
	})
}
