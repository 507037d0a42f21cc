// Package corpus generates recordings in the mixture of a typical year: attacks, developers at work, alert floods,
// several pods, actions that are refused or fail, missing results. The same seed gives the same bytes, and the
// recording of an index does not depend on the number of recordings.
//
// It refuses to be evidence: its recordings are marked as anonymized, their cluster is named `corpus`, and their
// addresses are from the ranges for documentation. It holds only one recording in memory.
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

// Options select the recordings. The zero value of each field has the meaning in its comment.
type Options struct {
	Seed uint64
	// Count is the number of recordings.
	Count int
	// Kinds selects incident kinds by name; nil selects all, in their proportions.
	Kinds []string
	// StormDetections is the number of detections of an alert flood; 0 means 1000.
	StormDetections int
}

// Generate returns an iterator over the recordings.
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

// kindTable assigns a kind to each of a thousand indices, so that any thousand consecutive indices have the same
// mixture.
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

// indexStride spreads the kinds over neighboring indices. It is prime, so it visits each entry of the table once per
// round.
const indexStride = 7919

func generateRecording(o Options, table []IncidentKind, i int) recording.Recording {
	random := rand.New(rand.NewPCG(o.Seed, uint64(i)))
	kind := table[(i*indexStride+int(o.Seed%uint64(len(table))))%len(table)]
	s := newScenarioBuilder(random, o, i, kind.Name)
	kind.build(s)
	return s.closeIncident()
}

// openedAt is the time at which the first incident of a corpus opens; the others follow over a year.
var openedAt = func(seed uint64, i int) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0,
		time.UTC).Add(time.Duration(seed%1000) * time.Second).Add(time.Duration(i%8760) * time.Hour)
}

// randomHex returns n random hexadecimal digits.
func randomHex(r *rand.Rand, n int) string {
	raw := make([]byte, (n+1)/2+8)
	for i := 0; i < len(raw)-7; i += 8 {
		binary.BigEndian.PutUint64(raw[i:], r.Uint64())
	}
	return hex.EncodeToString(raw)[:n]
}

func randomElement[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }
