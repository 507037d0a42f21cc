package main

import (
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stanch/playbooks/recording"
	"stanch/sensors/duration"
	"stanch/worker/simulate"
)

// recordings are those of a file or a folder, each read when its turn comes.
type recordings struct {
	entries iter.Seq[simulate.CorpusEntry]
	// total is how many there are; 0 is not known.
	total int
	// one: it is a single recording, shown whole.
	one bool
	// failed is why the reading ended before the end.
	failed *error
}

// openCorpus finds the recordings of a path. What is wrong with the only one is said at once.
func openCorpus(path string) (recordings, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return recordings{}, fmt.Errorf("no such file or folder: %s", path)
	case !info.IsDir() && !strings.HasSuffix(path, ".jsonl"):
		raw, err := readBounded(path, recording.MaxBytes)
		if err != nil {
			return recordings{}, err
		}
		if _, err := recording.Decode(raw); err != nil {
			return recordings{}, fmt.Errorf("%s: %w", path, err)
		}
		read := func() ([]byte, error) { return raw, nil }
		return recordings{one: true, total: 1, entries: func(yield func(simulate.CorpusEntry) bool) { yield(simulate.CorpusEntry{Name: path, Read: read}) }}, nil
	case !info.IsDir():
		return many([]string{path}), nil
	}
	var files []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.HasSuffix(p, ".json") || strings.HasSuffix(p, ".jsonl")) {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		return recordings{}, fmt.Errorf("read %s: %w", path, err)
	}
	if len(files) == 0 {
		return recordings{}, fmt.Errorf("no recording (*.json, *.jsonl) in %s; `stanch record ID > FILE` makes one", path)
	}
	return many(files), nil
}

// many reads files one after the other, in their order.
func many(files []string) recordings {
	var failed error
	r := recordings{failed: &failed, total: len(files)}
	for _, file := range files {
		if strings.HasSuffix(file, ".jsonl") {
			r.total = 0
		}
	}
	r.entries = func(yield func(simulate.CorpusEntry) bool) {
		for _, file := range files {
			if !strings.HasSuffix(file, ".jsonl") {
				if !yield(simulate.CorpusEntry{Name: file, Read: func() ([]byte, error) { return readBounded(file, recording.MaxBytes) }}) {
					return
				}
				continue
			}
			more, err := readLines(file, yield)
			if err != nil {
				failed = err
			}
			if !more || err != nil {
				return
			}
		}
	}
	return r
}

// readLines gives the recordings of a file with one a line.
func readLines(file string, yield func(simulate.CorpusEntry) bool) (more bool, err error) {
	f, err := os.Open(file)
	if err != nil {
		return false, fmt.Errorf("read recordings: %w", err)
	}
	defer func() { _ = f.Close() }()
	more = true
	err = recording.ReadLines(f, func(n int, line []byte) error {
		name := fmt.Sprintf("%s:%d", file, n)
		more = yield(simulate.CorpusEntry{Name: name, Read: func() ([]byte, error) { return line, nil }})
		if !more {
			return io.EOF
		}
		return nil
	})
	if !more {
		err = nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	return more, nil
}

func readBounded(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read a recording: %w", err)
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return raw, nil
}

// meter says on a terminal how far a long run is; anywhere else it says nothing but what is broken.
type meter struct {
	out      io.Writer
	terminal bool
	total    int
	done     int
	began    time.Time
	said     time.Time
}

func newMeter(out io.Writer, total int) *meter {
	p := &meter{out: out, total: total, began: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// often is how often progress is said, and how long a run is before any is.
const often = 250 * time.Millisecond

func (p *meter) add(r simulate.Result, format string) {
	p.done++
	if r.IncidentID == "" && r.Error != "" && format != "text" {
		p.clear()
		fmt.Fprintln(p.out, plain("stanch: "+r.Error)) // in text it stands in the report
	}
	now := time.Now()
	if !p.terminal || p.total == 1 || now.Sub(p.began) < often || now.Sub(p.said) < often {
		return
	}
	p.said = now
	rate := float64(p.done) / now.Sub(p.began).Seconds()
	text := fmt.Sprintf("%d incidents, %.0f a second", p.done, rate)
	if p.total > 0 {
		left := time.Duration(float64(p.total-p.done) / rate * float64(time.Second))
		text = fmt.Sprintf("%d of %d incidents, %.0f a second, %s left", p.done, p.total, rate, duration.FormatApprox(left))
	}
	fmt.Fprint(p.out, "\r\x1b[K"+text)
}

func (p *meter) clear() {
	if p.terminal && !p.said.IsZero() {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func (p *meter) end() { p.clear() }
