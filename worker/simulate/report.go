package simulate

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// SimulationReport is the output of `stanch simulate -o json`, which JSONReport writes incrementally.
type SimulationReport struct {
	Version int              `json:"version"`
	Results []Result         `json:"results"`
	Changes []IncidentChange `json:"changes,omitempty"` // with a baseline
	Totals  Totals           `json:"totals"`
	Summary string           `json:"summary"`
}

// NewReport summarizes results; base is nil without a baseline.
func NewReport(results, base []Result) SimulationReport {
	t := NewTotals(base != nil)
	r := SimulationReport{Version: 1, Results: results}
	if base != nil {
		r.Changes = []IncidentChange{}
	}
	for i := range results {
		o := RecordingOutcome{Result: results[i]}
		if base != nil {
			if o.Change = CompareResults(base[i], results[i]); o.Change != nil {
				r.Changes = append(r.Changes, *o.Change)
			}
		}
		t.AddOutcome(o)
	}
	r.Totals, r.Summary = *t, t.Summarize()
	return r
}

// ReportWriter writes a report, one outcome at a time.
type ReportWriter interface {
	Add(RecordingOutcome) error
	// Close writes the end of the report.
	Close(*Totals) error
}

// JSONReport writes a SimulationReport as one document without keeping its results in memory. The changes come after
// the results, and are in a temporary file until then.
type JSONReport struct {
	out           *bufio.Writer
	changesFile   *os.File
	changesWriter *bufio.Writer
	resultCount   int
	changeCount   int
}

// NewJSONReport starts a document; against means that there is a baseline.
func NewJSONReport(w io.Writer, against bool) (*JSONReport, error) {
	j := &JSONReport{out: bufio.NewWriterSize(w, 1<<16)}
	if against {
		f, err := os.CreateTemp("", "stanch-changes-*")
		if err != nil {
			return nil, fmt.Errorf("store the changes: %w; check the free space in %s", err, os.TempDir())
		}
		_ = os.Remove(f.Name()) // the file exists until it is closed
		j.changesFile, j.changesWriter = f, bufio.NewWriterSize(f, 1<<16)
	}
	_, err := j.out.WriteString("{\n  \"version\": 1,\n  \"results\": [")
	return j, wrapWriteError(err)
}

func wrapWriteError(err error) error {
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// Add writes one result.
func (j *JSONReport) Add(o RecordingOutcome) error {
	if err := writeItem(j.out, &j.resultCount, o.Result); err != nil || o.Change == nil || j.changesWriter == nil {
		return err
	}
	return writeItem(j.changesWriter, &j.changeCount, o.Change)
}

func writeItem(w *bufio.Writer, n *int, v any) error {
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
	return wrapWriteError(err)
}

func closingBracket(n int) string {
	if n == 0 {
		return "]"
	}
	return "\n  ]"
}

// Close writes the changes and the totals.
func (j *JSONReport) Close(t *Totals) error {
	_, err := j.out.WriteString(closingBracket(j.resultCount))
	if err == nil && j.changesFile != nil {
		err = j.copyChanges()
	}
	if err != nil {
		return wrapWriteError(err)
	}
	tally, err := json.MarshalIndent(t, "  ", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	summary, err := json.Marshal(t.Summarize())
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	fmt.Fprintf(j.out, ",\n  \"totals\": %s,\n  \"summary\": %s\n}\n", tally, summary)
	return wrapWriteError(j.out.Flush())
}

func (j *JSONReport) copyChanges() error {
	_, err := j.out.WriteString(",\n  \"changes\": [")
	err = errors.Join(err, j.changesWriter.Flush())
	if err == nil {
		_, err = j.changesFile.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = io.Copy(j.out, j.changesFile)
	}
	if err == nil {
		_, err = j.out.WriteString(closingBracket(j.changeCount))
	}
	return errors.Join(err, j.changesFile.Close())
}
