package expression

import (
	"strings"
	"testing"
)

func TestSplitsInPredicateAreBounded(t *testing.T) {
	type env struct {
		S string `expr:"s"`
	}
	for source, fits := range map[string]bool{
		`split(s, "")`: true,
		`map(split("a b", " "), len(split(s + s + s, "")) > 1)`: false,
		`map(split(s, ""), split(s, ""))`:                       false,
		`split(s + s + s, "")`:                                  false,
		`split(s, "", 3)`:                                       true,
	} {
		p, err := Compile(source, env{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Run(p, env{S: strings.Repeat("a", 2000)}); (err == nil) != fits {
			t.Errorf("%s: %v", source, err)
		}
	}
}
