package main

import "strings"

// accepted is a mutant that no test notices, for a reason. Line numbers are left out, so that other changes of the file
// do not touch it.
type accepted struct {
	File     string
	Function string
	Text     string // the source line at which the changed code begins
	Change   string
	Reason   string
}

func findAccepted(m mutant) (accepted, bool) {
	for _, a := range acceptedSurvivors() {
		if a.File == m.File && a.Function == m.Function && a.Text == m.Text &&
			a.Change == strings.TrimSuffix(m.Change, notReachedMark) {
			return a, true
		}
	}
	return accepted{}, false
}

// acceptedOf returns the accepted survivors of a target.
func acceptedOf(t target) []accepted {
	var out []accepted
	for _, a := range acceptedSurvivors() {
		for _, s := range t.Files {
			if strings.HasPrefix(a.File, s.Dir+"/") {
				out = append(out, a)
			}
		}
	}
	return out
}

func acceptedSurvivors() []accepted {
	return nil
}
