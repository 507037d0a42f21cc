package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// writeSlowest writes the time of each phase, and the n slowest packages and tests of all phases.
func writeSlowest(to io.Writer, phases []phaseTimes, n int) {
	var tests, packages []testTime
	for _, p := range phases {
		fmt.Fprintf(to, "%6.1f s  phase %q: %d packages, %d tests\n", p.Seconds, p.Phase, len(p.Packages), len(p.Tests))
		tests, packages = append(tests, p.Tests...), append(packages, p.Packages...)
	}
	for _, list := range []struct {
		title string
		times []testTime
	}{{"slowest packages", packages}, {"slowest tests", tests}} {
		slices.SortStableFunc(list.times, func(a, b testTime) int { return cmp.Compare(b.Seconds, a.Seconds) })
		fmt.Fprintf(to, "%s:\n", list.title)
		for _, one := range list.times[:min(n, len(list.times))] {
			fmt.Fprintf(to, "%6.1f s  %s\n", one.Seconds, strings.TrimSpace(one.Package+" "+one.Test))
		}
	}
}
