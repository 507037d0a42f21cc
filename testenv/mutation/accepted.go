package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// acceptedFile lists the mutants that may survive, grouped by the reason. Line numbers are left out, so that other
// changes of a file do not touch it.
const acceptedFile = "testenv/mutation/survivors.json"

// accepted is a mutant that no test notices, for a reason.
type accepted struct {
	File     string `json:"file"`
	Function string `json:"function"`
	Text     string `json:"text"` // the source line at which the changed code begins
	Change   string `json:"change"`
}

// acceptedGroup is a reason with its mutants.
type acceptedGroup struct {
	Reason  string     `json:"reason"`
	Mutants []accepted `json:"mutants"`
}

// acceptedSurvivors are the reasons of the mutants that may survive.
type acceptedSurvivors map[accepted]string

func readAccepted(file string) (acceptedSurvivors, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the accepted survivors: %w", err)
	}
	var groups []acceptedGroup
	if err := json.Unmarshal(raw, &groups); err != nil {
		return nil, fmt.Errorf("read the accepted survivors: %s: %w", file, err)
	}
	out := acceptedSurvivors{}
	for _, g := range groups {
		for _, a := range g.Mutants {
			if g.Reason == "" || out[a] != "" {
				return nil, fmt.Errorf("read the accepted survivors: %s: missing reason, or listed twice: %s: %s", file,
					a.Function, a.Change)
			}
			out[a] = g.Reason
		}
	}
	return out, nil
}

// keyOf returns a mutant as the list of accepted survivors names it.
func keyOf(m mutant) accepted { return accepted{m.File, m.Function, m.Text, m.Change} }

// ofTarget returns the accepted survivors in the files of a target.
func (a acceptedSurvivors) ofTarget(t target) map[accepted]bool {
	out := map[accepted]bool{}
	for key := range a {
		if t.hasFile(key.File) {
			out[key] = true
		}
	}
	return out
}

func (t target) hasFile(file string) bool {
	return slices.ContainsFunc(t.Files, func(s source) bool {
		name, ok := strings.CutPrefix(file, s.Dir+"/")
		return ok && slices.Contains(s.Files, name)
	})
}
