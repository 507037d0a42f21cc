package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// edit replaces a range of a file. wrap receives the text of the range with the edits inside of it.
type edit struct {
	start, end int
	wrap       func(inner string) string
}

// render returns the source with all edits. Edits nest: no two overlap partly.
func render(src string, edits []edit) string {
	slices.SortStableFunc(edits, func(a, b edit) int {
		// an insertion comes before the edits that begin at its place
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(isWide(a), isWide(b)), cmp.Compare(b.end, a.end))
	})
	return renderRange(src, 0, len(src), edits)
}

func isWide(e edit) int { return min(e.end-e.start, 1) }

func renderRange(src string, start, end int, edits []edit) string {
	var out strings.Builder
	for len(edits) > 0 {
		e, inside := edits[0], 1
		for inside < len(edits) && edits[inside].start < e.end {
			inside++
		}
		out.WriteString(src[start:e.start])
		out.WriteString(e.wrap(renderRange(src, e.start, e.end, edits[1:inside])))
		start, edits = e.end, edits[inside:]
	}
	return out.String() + src[start:end]
}

// The environment variables of a test binary with mutants.
const (
	envMutant  = "STANCH_MUTANT"         // number of the mutant that is on
	envReached = "STANCH_MUTANT_REACHED" // file to which the numbers of the mutants that the tests reach are added
)

// switchesSource returns the file that is added to a package with mutants.
func switchesSource(name string) string {
	return fmt.Sprintf(switchesTemplate, name, envMutant, envReached)
}

const switchesTemplate = `package %s

import (
	"fmt"
	"os"
	"strconv"
	"sync"
)

var (
	mutActive, _ = strconv.Atoi(os.Getenv(%q))
	mutFile      = os.Getenv(%q)
	mutSeen      sync.Map
)

func mutOn(ids ...int) bool {
	for _, id := range ids {
		if mutFile != "" {
			if _, seen := mutSeen.LoadOrStore(id, true); !seen {
				if f, err := os.OpenFile(mutFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
					fmt.Fprintln(f, id)
					f.Close()
				}
			}
		}
		if id == mutActive {
			return true
		}
	}
	return false
}

type mutNumber interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~float32 | ~float64
}

func mutZero[T any](id int, v T) T {
	if mutOn(id) {
		var zero T
		return zero
	}
	return v
}

func mutNeg[T mutNumber](id int, v T) T {
	if mutOn(id) {
		return -v
	}
	return v
}

func mutStep[T mutNumber](more, less int, step, v T) T {
	switch {
	case mutOn(more):
		return v + step
	case mutOn(less):
		return v - step
	}
	return v
}

var _, _, _, _ = mutOn, mutZero[int], mutNeg[int], mutStep[int]
`
