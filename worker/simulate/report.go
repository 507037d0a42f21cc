package simulate

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// Report is what `stanch simulate -o json` prints; it is written as it comes about (Writer).
type Report struct {
	Version int      `json:"version"`
	Results []Result `json:"results"`
	Changes []Change `json:"changes,omitempty"` // with a baseline
	Tally   Tally    `json:"tally"`
	Summary string   `json:"summary"`
}

// NewReport sums results up; base is nil without a baseline.
func NewReport(results, base []Result) Report {
	t := NewTally(base != nil)
	r := Report{Version: 1, Results: results}
	if base != nil {
		r.Changes = []Change{}
	}
	for i := range results {
		o := Outcome{Result: results[i]}
		if base != nil {
			if o.Change = Compare(base[i], results[i]); o.Change != nil {
				r.Changes = append(r.Changes, *o.Change)
			}
		}
		t.Add(o)
	}
	r.Tally, r.Summary = *t, t.Summary()
	return r
}

// Writer writes a report to wherever it goes, an outcome at a time.
type Writer interface {
	Add(Outcome) error
	// Close writes what stands at the end.
	Close(*Tally) error
}

// JSON writes a Report as one document and holds none of its results. Changes stand after the results: until then they
// lie in a file of their own.
type JSON struct {
	out     *bufio.Writer
	changes *os.File
	spool   *bufio.Writer
	results int
	changed int
}

// NewJSON starts a document; against says that there is a baseline.
func NewJSON(w io.Writer, against bool) (*JSON, error) {
	j := &JSON{out: bufio.NewWriterSize(w, 1<<16)}
	if against {
		f, err := os.CreateTemp("", "stanch-changes-*")
		if err != nil {
			return nil, fmt.Errorf("keep the changes: %w; is there room in %s?", err, os.TempDir())
		}
		_ = os.Remove(f.Name()) // it lives as long as it is open
		j.changes, j.spool = f, bufio.NewWriterSize(f, 1<<16)
	}
	_, err := j.out.WriteString("{\n  \"version\": 1,\n  \"results\": [")
	return j, written(err)
}

func written(err error) error {
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// Add writes one result.
func (j *JSON) Add(o Outcome) error {
	if err := item(j.out, &j.results, o.Result); err != nil || o.Change == nil || j.spool == nil {
		return err
	}
	return item(j.spool, &j.changed, o.Change)
}

func item(w *bufio.Writer, n *int, v any) error {
	raw, err := json.MarshalIndent(v, "    ", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	before := ",\n    "
	if *n == 0 {
		before = "\n    "
	}
	*n++
	_, err = w.WriteString(before)
	if err == nil {
		_, err = w.Write(raw)
	}
	return written(err)
}

func end(n int) string {
	if n == 0 {
		return "]"
	}
	return "\n  ]"
}

// Close writes the changes and the sum.
func (j *JSON) Close(t *Tally) error {
	_, err := j.out.WriteString(end(j.results))
	if err == nil && j.changes != nil {
		err = j.copyChanges()
	}
	if err != nil {
		return written(err)
	}
	tally, err := json.MarshalIndent(t, "  ", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	summary, err := json.Marshal(t.Summary())
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	fmt.Fprintf(j.out, ",\n  \"tally\": %s,\n  \"summary\": %s\n}\n", tally, summary)
	return written(j.out.Flush())
}

func (j *JSON) copyChanges() error {
	_, err := j.out.WriteString(",\n  \"changes\": [")
	err = errors.Join(err, j.spool.Flush())
	if err == nil {
		_, err = j.changes.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = io.Copy(j.out, j.changes)
	}
	if err == nil {
		_, err = j.out.WriteString(end(j.changed))
	}
	return errors.Join(err, j.changes.Close())
}
