package playbooktest

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"

	"stanch/sensors/redact"
)

type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Name     string       `xml:"name,attr"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Errors   int          `xml:"errors,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Time     string      `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	File    string        `xml:"file,attr"`
	Line    int           `xml:"line,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitFailure `xml:"failure,omitempty"`
	Error   *junitFailure `xml:"error,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Text    string `xml:",chardata"`
}

// WriteJUnit writes the report in JUnit's XML format, for continuous integration. A file that could not be run is an
// error.
func WriteJUnit(w io.Writer, r Report) error {
	all := junitSuites{Name: "stanch test"}
	for _, f := range r.Files {
		s := junitSuite{Name: f.File}
		var whole time.Duration
		if f.Problems.HasErrors() {
			lines := make([]string, len(f.Problems))
			for i, p := range f.Problems {
				lines[i] = redact.EscapeControlChars(p.String())
			}
			s.Cases = append(s.Cases, junitCase{
				Name: "is valid", Class: f.File, File: f.File, Line: 1, Time: "0",
				Error: &junitFailure{Message: lines[0], Type: "invalid", Text: strings.Join(lines, "\n")},
			})
			s.Errors++
		}
		for _, t := range f.Tests {
			whole += t.WallTime
			c := junitCase{
				Name: redact.EscapeControlChars(t.Name), Class: f.File, File: f.File, Line: t.Line,
				Time: fmt.Sprintf("%.3f", t.WallTime.Seconds()),
			}
			if !t.Passed {
				var lines []string
				for _, fail := range t.Failures {
					lines = append(lines, redact.EscapeControlChars(fmt.Sprintf("%s:%d:%d: %s", f.File, fail.Line, fail.Column,
						fail.Message)))
				}
				c.Failure = &junitFailure{Message: lines[0], Type: "expectation", Text: strings.Join(lines, "\n")}
				s.Failures++
			}
			s.Cases = append(s.Cases, c)
		}
		s.Tests, s.Time = len(s.Cases), fmt.Sprintf("%.3f", whole.Seconds())
		all.Tests, all.Failures, all.Errors = all.Tests+s.Tests, all.Failures+s.Failures, all.Errors+s.Errors
		all.Suites = append(all.Suites, s)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return fmt.Errorf("write the JUnit file: %w", err)
	}
	encoder := xml.NewEncoder(w)
	encoder.Indent("", "  ")
	if err := encoder.Encode(all); err != nil {
		return fmt.Errorf("write the JUnit file: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err //nolint:wrapcheck // only the end of the file
}
