// Package corpus makes recordings in the mixture that a year of incidents has: attacks, developers at work, storms,
// several pods, actions that refuse and fail, answers that are missing. The same seed gives the same bytes, and the
// recording of an index does not depend on how many there are.
//
// It refuses to be evidence: what it makes is marked as anonymised, its cluster is called `corpus`, and its addresses
// are of the ranges that are kept for documentation. It holds one recording at a time, however many are asked for.
package corpus

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	"stanch/playbooks/recording"
)

// Options say what is made. The zero value of each is what its comment says.
type Options struct {
	Seed uint64
	// Count is how many; 0 is none.
	Count int
	// Kinds are those of Kinds that are made, by name; nil is all, in their proportions.
	Kinds []string
	// StormDetections is how many detections a storm has; 0 is 1000.
	StormDetections int
}

// Generate gives the recordings one by one.
func Generate(o Options) (iter.Seq2[int, recording.Recording], error) {
	table, err := o.kindTable()
	if err != nil {
		return nil, err
	}
	return func(yield func(int, recording.Recording) bool) {
		for i := range o.Count {
			if !yield(i, generateRecording(o, table, i)) {
				return
			}
		}
	}, nil
}

// kindTable has a kind for each of a thousand indices, so that any thousand in a row have the same mixture.
func (o Options) kindTable() ([]IncidentKind, error) {
	var out []IncidentKind
	chosen := Kinds
	if o.Kinds != nil {
		chosen = nil
		for _, name := range o.Kinds {
			k, ok := findKind(name)
			if !ok {
				return nil, fmt.Errorf("there is no kind %q of recording; `corpus --kinds help` lists them", name)
			}
			chosen = append(chosen, k)
		}
	}
	for _, k := range chosen {
		for range k.PerMille {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no kind of recording is chosen")
	}
	return out, nil
}

// indexStride spreads the kinds over neighbouring indices: it is prime, and so meets each place of the table once a round.
const indexStride = 7919

func generateRecording(o Options, table []IncidentKind, i int) recording.Recording {
	random := rand.New(rand.NewPCG(o.Seed, uint64(i))) //nolint:gosec // a reproducible mixture, no secret
	kind := table[(i*indexStride+int(o.Seed%uint64(len(table))))%len(table)]
	s := newScenarioBuilder(random, o, i, kind.Name)
	kind.build(s)
	return s.closeIncident()
}

// openedAt is when the first incident of a corpus was opened; the others follow over a year.
var openedAt = func(seed uint64, i int) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(seed%1000) * time.Second).Add(time.Duration(i%8760) * time.Hour)
}

// randomHex gives n random hex digits.
func randomHex(r *rand.Rand, n int) string {
	raw := make([]byte, (n+1)/2+8)
	for i := 0; i < len(raw)-7; i += 8 {
		binary.BigEndian.PutUint64(raw[i:], r.Uint64())
	}
	return hex.EncodeToString(raw)[:n]
}

func randomElement[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }
