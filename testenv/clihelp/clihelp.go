// Package clihelp checks the help texts of a command line: their form, and that their examples are valid calls.
package clihelp

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
)

// The maximum widths of a line of help text and of an example.
const (
	maxTextColumns    = 120
	maxExampleColumns = 150
)

var (
	// flagPlaceholderPattern matches the placeholder of a flag: a type name of pflag, or one word in capitals.
	flagPlaceholderPattern = regexp.MustCompile(
		`^(|int|int32|float|uint|string|strings|duration|[A-Z][A-Z0-9]*(:[A-Z]+)?)$`,
	)
	incidentIDPattern = regexp.MustCompile(`^INC-[0-9A-HJKMNP-TV-Z]{26}$`)
	leaseIDPattern    = regexp.MustCompile(`^LSE-[0-9A-F]{20}$`)
)

// Example is one example line in the help of a command.
type Example struct {
	// Command is the command whose help has the example.
	Command *cobra.Command
	// Line is the shell command, without indentation and comment.
	Line string
	// Calls has the arguments of each call of the program in the line, without redirections.
	Calls [][]string
}

// Walk calls f for root and for every command below it.
func Walk(root *cobra.Command, f func(*cobra.Command)) {
	f(root)
	for _, sub := range root.Commands() {
		Walk(sub, f)
	}
}

// Examples returns the example lines of all commands below root, in the order of the help.
func Examples(root *cobra.Command) ([]Example, error) {
	var out []Example
	var errs []error
	Walk(root, func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			e := Example{Command: c}
			var words []string
			var err error
			if e.Line, words, err = splitWords(line); err != nil {
				errs = append(errs, fmt.Errorf("%s: parse example %q: %w", c.CommandPath(), line, err))
				continue
			}
			e.Calls = splitCalls(root.Name(), words)
			out = append(out, e)
		}
	})
	return out, errors.Join(errs...)
}

// splitWords splits a shell line into words. Operators are words of their own; a comment is left out of line and words.
func splitWords(text string) (line string, words []string, err error) {
	text = strings.TrimSpace(text)
	var word strings.Builder
	quote, inWord, end := rune(0), false, len(text)
	flush := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
scan:
	for i, r := range text {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == '#' && !inWord:
			end = i
			break scan
		case unicode.IsSpace(r):
			flush()
		case strings.ContainsRune("|;><&", r):
			flush()
			words = append(words, string(r))
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return "", nil, errors.New("unclosed quote")
	}
	flush()
	return strings.TrimSpace(text[:end]), words, nil
}

// splitCalls returns the arguments of each call of program, also behind another program such as ssh.
func splitCalls(program string, words []string) [][]string {
	var calls [][]string
	var args []string
	in, redirect := false, false
	flush := func() {
		if in {
			calls = append(calls, args)
		}
		args, in = nil, false
	}
	for _, w := range words {
		switch {
		case w == "|" || w == ";" || w == "&":
			flush()
		case w == ">" || w == "<":
			redirect = true
		case redirect:
			redirect = false
		case in:
			args = append(args, w)
		case w == program:
			in, args = true, []string{}
		}
	}
	flush()
	return calls
}

// CheckForm checks the help text of every command and flag: present, imperative, and in the width of a terminal.
func CheckForm(t *testing.T, root *cobra.Command) {
	t.Helper()
	Walk(root, func(c *cobra.Command) {
		path := c.CommandPath()
		first, _ := utf8.DecodeRuneInString(c.Short)
		assert.True(t, unicode.IsUpper(first), "%s: Short %q begins with a capital", path, c.Short)
		assert.False(t, strings.HasSuffix(c.Short, "."), "%s: Short %q has no period", path, c.Short)
		assert.NotEmpty(t, c.Long, "%s: Long says when to use the command", path)
		if c.Runnable() {
			assert.NotEmpty(t, c.Example, "%s: Example is missing", path)
		}
		checkWidth(t, path, c.Long, maxTextColumns)
		checkWidth(t, path, c.Example, maxExampleColumns)
		for _, flags := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			flags.VisitAll(func(f *pflag.Flag) { checkFlag(t, path+" --"+f.Name, f) })
		}
	})
}

func checkWidth(t *testing.T, path, text string, columns int) {
	t.Helper()
	for line := range strings.Lines(text) {
		assert.LessOrEqual(t, utf8.RuneCountInString(strings.TrimRight(line, "\n")), columns, "%s: %s", path, line)
	}
}

// checkFlag checks the description of a flag. pflag takes the first words in backquotes as the placeholder: a quoted
// command there would be shown as `--listen-nodes stanch cert`.
func checkFlag(t *testing.T, path string, f *pflag.Flag) {
	t.Helper()
	placeholder, usage := pflag.UnquoteUsage(f)
	assert.Regexp(t, flagPlaceholderPattern, placeholder, path)
	assert.NotEmpty(t, usage, path)
	assert.NotContains(t, usage, "`", path)
	assert.False(t, strings.HasSuffix(usage, "."), "%s: the description has no period", path)
}

// CheckExamples checks that every example calls commands and flags that exist, with valid arguments. newRoot returns a
// new command tree for each call, since parsing changes it.
func CheckExamples(t *testing.T, newRoot func() *cobra.Command) {
	t.Helper()
	examples, err := Examples(newRoot())
	assert.NoError(t, err)
	assert.NotEmpty(t, examples)
	for _, e := range examples {
		assert.NotEmpty(t, e.Calls, "%s: %q calls another program only", e.Command.CommandPath(), e.Line)
		for _, args := range e.Calls {
			assert.NoError(t, checkCall(newRoot(), args), "%s: %q", e.Command.CommandPath(), e.Line)
		}
	}
}

func checkCall(root *cobra.Command, args []string) error {
	for _, a := range args {
		switch {
		case strings.Contains(a, "…"):
			return fmt.Errorf("invalid argument %q: it cannot be typed", a)
		case strings.HasPrefix(a, "INC-") && !incidentIDPattern.MatchString(a), strings.HasPrefix(a, "LSE-") &&
			!leaseIDPattern.MatchString(a):
			return fmt.Errorf("invalid id %q", a)
		}
	}
	c, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	positional := c.Flags().Args()
	if err := c.ValidateArgs(positional); err != nil {
		return err
	}
	for _, a := range positional {
		if len(c.ValidArgs) > 0 && !slices.Contains(c.ValidArgs, cobra.Completion(a)) {
			return fmt.Errorf("unknown argument %q", a)
		}
	}
	var missing error
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if strings.HasSuffix(f.Usage, "(required)") && !f.Changed {
			missing = errors.Join(missing, fmt.Errorf("missing --%s", f.Name))
		}
	})
	return missing
}
