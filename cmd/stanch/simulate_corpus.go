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

// recordingSource lists the recordings of a file or a directory. Each is read when it is simulated.
type recordingSource struct {
	entries iter.Seq[simulate.CorpusEntry]
	// total is the number of recordings; 0 if unknown.
	total int
	// single is true for one recording, whose timeline is printed.
	single bool
	// readError points to the error that ended reading early; it is set while entries are read. nil for a single
	// recording.
	readError *error
}

// openCorpus finds the recordings of a path. A single recording is checked at once.
func openCorpus(path string) (recordingSource, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return recordingSource{}, fmt.Errorf("read recordings: no such file or directory: %s", path)
	case !info.IsDir() && !strings.HasSuffix(path, ".jsonl"):
		raw, err := readBounded(path, recording.MaxBytes)
		if err != nil {
			return recordingSource{}, err
		}
		if _, err := recording.Decode(raw); err != nil {
			return recordingSource{}, fmt.Errorf("read %s: %w", path, err)
		}
		read := func() ([]byte, error) { return raw, nil }
		return recordingSource{
			single: true, total: 1,
			entries: func(yield func(simulate.CorpusEntry) bool) { yield(simulate.CorpusEntry{Name: path, Read: read}) },
		}, nil
	case !info.IsDir():
		return readFiles([]string{path}), nil
	}
	var files []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.HasSuffix(p, ".json") || strings.HasSuffix(p, ".jsonl")) {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		return recordingSource{}, fmt.Errorf("read %s: %w", path, err)
	}
	if len(files) == 0 {
		return recordingSource{}, fmt.Errorf("read recordings: no *.json or *.jsonl file in %s; create one with "+
			"`stanch record ID > FILE`", path)
	}
	return readFiles(files), nil
}

// readFiles returns the recordings of files, in order.
func readFiles(files []string) recordingSource {
	var failed error
	r := recordingSource{readError: &failed, total: len(files)}
	for _, file := range files {
		if strings.HasSuffix(file, ".jsonl") {
			r.total = 0
		}
	}
	r.entries = func(yield func(simulate.CorpusEntry) bool) {
		for _, file := range files {
			if !strings.HasSuffix(file, ".jsonl") {
				if !yield(simulate.CorpusEntry{
					Name: file,
					Read: func() ([]byte, error) { return readBounded(file, recording.MaxBytes) },
				}) {
					return
				}
				continue
			}
			more, err := readRecordingLines(file, yield)
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

// readRecordingLines yields the recordings of a file with one per line. more is false if yield stopped it.
func readRecordingLines(file string, yield func(simulate.CorpusEntry) bool) (more bool, err error) {
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
		return false, fmt.Errorf("read %s: %w", file, err)
	}
	return more, nil
}

// readBounded reads at most limit+1 bytes of a file, so that a caller can detect that it is too large.
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

// progressBar prints the progress of a long run on a terminal. Elsewhere it prints only recordings that failed.
type progressBar struct {
	out       io.Writer
	terminal  bool
	total     int
	done      int
	startedAt time.Time
	lastShown time.Time
}

func newProgressBar(out io.Writer, total int) *progressBar {
	p := &progressBar{out: out, total: total, startedAt: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// progressInterval is the interval of progress output, and the time before the first.
const progressInterval = 250 * time.Millisecond

func (p *progressBar) update(r simulate.Result, format string) {
	p.done++
	if r.IncidentID == "" && r.Error != "" && format != "text" {
		p.clear()
		fmt.Fprintln(p.out, escapeForTerminal("stanch: "+r.Error)) // text reports include the error
	}
	now := time.Now()
	if !p.terminal || p.total == 1 || now.Sub(p.startedAt) < progressInterval || now.Sub(p.lastShown) < progressInterval {
		return
	}
	p.lastShown = now
	rate := float64(p.done) / now.Sub(p.startedAt).Seconds()
	text := fmt.Sprintf("%d incidents, %.0f a second", p.done, rate)
	if p.total > 0 {
		left := time.Duration(float64(p.total-p.done) / rate * float64(time.Second))
		text = fmt.Sprintf("%d of %d incidents, %.0f a second, %s left", p.done, p.total, rate, duration.FormatApprox(left))
	}
	fmt.Fprint(p.out, "\r\x1b[K"+text)
}

func (p *progressBar) clear() {
	if p.terminal && !p.lastShown.IsZero() {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func (p *progressBar) finish() { p.clear() }
