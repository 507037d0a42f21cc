// Package simulationreport renders the results of package simulate as JSON or as an HTML page with timelines. It
// computes
// nothing that a reader could compare: differences and totals come with the results.
package simulationreport

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"stanch/worker/simulate"
)

// Report is the output of `stanch simulate -o json`, which JSONReport writes incrementally.
type Report struct {
	Version int                       `json:"version"`
	Results []simulate.Result         `json:"results"`
	Changes []simulate.IncidentChange `json:"changes,omitempty"` // with a baseline
	Totals  simulate.Totals           `json:"totals"`
	Summary string                    `json:"summary"`
}

// Writer writes a report, one outcome at a time.
type Writer interface {
	Add(simulate.RecordingOutcome) error
	// Close writes the end of the report.
	Close(*simulate.Totals) error
}

// JSON writes a SimulationReport as one document without keeping its results in memory. The changes come after
// the results, and are in a temporary file until then.
type JSON struct {
	out           *bufio.Writer
	changesFile   *os.File
	changesWriter *bufio.Writer
	resultCount   int
	changeCount   int
}

// NewJSON starts a document; against means that there is a baseline.
func NewJSON(w io.Writer, against bool) (*JSON, error) {
	j := &JSON{out: bufio.NewWriterSize(w, 1<<16)}
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
func (j *JSON) Add(o simulate.RecordingOutcome) error {
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
func (j *JSON) Close(t *simulate.Totals) error {
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

func (j *JSON) copyChanges() error {
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
