package gatewayrpc

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"stanch/sensors"
)

// SpoolLimits bounds a spool. The zero value means the defaults.
type SpoolLimits struct {
	MaxDetections int   // default 10,000
	MaxBytes      int64 // default 64 MiB
}

func (l SpoolLimits) withDefaults() SpoolLimits {
	if l.MaxDetections == 0 {
		l.MaxDetections = 10_000
	}
	if l.MaxBytes == 0 {
		l.MaxBytes = 64 << 20
	}
	return l
}

// MaxDetectionBytes bounds one detection, in bytes of its JSON: a gateway accepts none that is larger, and one that fits into no
// message would be in the way of all that come after it.
const MaxDetectionBytes = 256 << 10

// Spool keeps detections, in order, until they are acknowledged. It is a file, so that it survives a kill of the
// process; it is not synced, so a crash of the machine may lose what came last.
type Spool struct {
	mu           sync.Mutex
	file         *os.File
	limit        SpoolLimits
	pending      [][]byte // JSON lines not yet acknowledged
	pendingBytes int64
	dropped      uint64
	ready        chan struct{}
	path         string
	// ackedBytes is how many bytes of the file, after its first line, were acknowledged: that line says so, and a restart
	// does not send them again.
	ackedBytes int64
	// incomplete: the file lacks something that is pending, so it cannot be told where in it what was acknowledged ends.
	incomplete bool
}

// headerFormat is the line that begins a spool's file, always of the same length.
const headerFormat = `{"spool":1,"done":%020d}` + "\n"

func headerLine(done int64) []byte { return fmt.Appendf(nil, headerFormat, done) }

// compactThresholdBytes is how much must have been acknowledged before the file is written anew without it.
const compactThresholdBytes = 1 << 20

// OpenSpool opens the spool in dir and reads back what a previous process left. A torn last line is dropped, and so is one
// that is too large to be sent, which an older sensor may have left: that is counted.
func OpenSpool(dir string, limit SpoolLimits) (*Spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	path := filepath.Join(dir, "detections.spool")
	s := &Spool{limit: limit.withDefaults(), ready: make(chan struct{}, 1), path: path}
	old, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("open spool: %w", err)
	default:
		if err := skipAcknowledged(old); err != nil {
			_ = old.Close()
			return nil, err
		}
		err := s.load(old)
		_ = old.Close()
		if err != nil {
			return nil, fmt.Errorf("read spool: %w", err)
		}
	}
	if err := s.compact(); err != nil {
		return nil, err
	}
	s.signalReady()
	return s, nil
}

// skipAcknowledged goes to the first line that was not acknowledged. A file of an older sensor says nothing of that, and one that
// says what cannot be is read from its beginning: what is sent again is known by its id.
func skipAcknowledged(f *os.File) error {
	head := make([]byte, len(headerLine(0)))
	var done int64
	at := int64(0)
	if n, err := f.ReadAt(head, 0); err == nil && n == len(head) {
		if _, err := fmt.Sscanf(string(head), headerFormat, &done); err == nil {
			at = int64(len(head))
			if info, err := f.Stat(); err == nil && done >= 0 && at+done <= info.Size() {
				at += done
			}
		}
	}
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	return nil
}

// load holds the lines of a file.
func (s *Spool) load(file io.Reader) error {
	lines := bufio.NewReaderSize(file, MaxDetectionBytes+1)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = lines.ReadSlice('\n')
			}
			s.dropped, line = s.dropped+1, nil
		}
		if line = bytes.TrimSuffix(line, []byte("\n")); json.Valid(line) {
			s.enqueue(bytes.Clone(line))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err //nolint:wrapcheck // the caller says what is read
		}
	}
}

// encodeDetection writes a detection as a line. One that is too large goes without its pod's labels and annotations, which are
// not the matter; if it is too large still, it is none.
func encodeDetection(d sensors.Detection) ([]byte, error) {
	line, err := json.Marshal(d)
	if err != nil || len(line) <= MaxDetectionBytes {
		return line, err //nolint:wrapcheck // the caller says what is encoded
	}
	d.Event.Container.Pod.Labels, d.Event.Container.Pod.Annotations = nil, nil
	return json.Marshal(d) //nolint:wrapcheck // see above
}

func (s *Spool) enqueue(line []byte) {
	s.pending = append(s.pending, line)
	s.pendingBytes += int64(len(line))
}

// compact replaces the file by what is pending, atomically.
func (s *Spool) compact() error {
	path := s.path
	next, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("rewrite spool: %w", err)
	}
	if _, err := next.Write(headerLine(0)); err != nil {
		_ = next.Close()
		return fmt.Errorf("rewrite spool: %w", err)
	}
	for _, line := range s.pending {
		if _, err := next.Write(append(line[:len(line):len(line)], '\n')); err != nil {
			_ = next.Close()
			return fmt.Errorf("rewrite spool: %w", err)
		}
	}
	if err := os.Rename(path+".new", path); err != nil {
		_ = next.Close()
		return fmt.Errorf("rewrite spool: %w", err)
	}
	if s.file != nil {
		_ = s.file.Close()
	}
	s.file, s.ackedBytes, s.incomplete = next, 0, false
	return nil
}

// Add keeps a detection. A full spool drops it and counts the drop, and so it does with one that is too large to be sent;
// a full disk keeps it in memory only.
func (s *Spool) Add(d sensors.Detection) error {
	line, err := encodeDetection(d)
	if err != nil {
		return fmt.Errorf("spool detection %s: %w", d.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(line) > MaxDetectionBytes {
		s.dropped++
		return fmt.Errorf("detection %s of rule %s dropped: it has %d bytes, and a gateway accepts at most %d", d.ID, d.Rule, len(line), MaxDetectionBytes)
	}
	if len(s.pending) >= s.limit.MaxDetections || s.pendingBytes+int64(len(line)) > s.limit.MaxBytes {
		s.dropped++
		return fmt.Errorf("spool is full (%d detections, %d bytes): detection %s dropped", len(s.pending), s.pendingBytes, d.ID)
	}
	s.enqueue(line)
	s.signalReady()
	if _, err := s.file.Write(append(line[:len(line):len(line)], '\n')); err != nil {
		s.incomplete = true
		return fmt.Errorf("spool detection %s: kept in memory only: %w", d.ID, err)
	}
	return nil
}

func (s *Spool) signalReady() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Ready is signalled when there may be something to send.
func (s *Spool) Ready() <-chan struct{} { return s.ready }

// Peek gives the oldest detections, at most n.
func (s *Spool) Peek(n int) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte(nil), s.pending[:min(n, len(s.pending))]...)
}

// Acknowledge forgets the oldest n detections: they were acknowledged.
func (s *Spool) Acknowledge(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = min(n, len(s.pending))
	for _, line := range s.pending[:n] {
		s.pendingBytes -= int64(len(line))
		s.ackedBytes += int64(len(line)) + 1
	}
	s.pending = append([][]byte(nil), s.pending[n:]...)
	if len(s.pending) > 0 {
		s.signalReady()
	}
	if len(s.pending) == 0 && !s.incomplete {
		return s.truncate()
	}
	if s.incomplete || s.ackedBytes > compactThresholdBytes && s.ackedBytes > s.pendingBytes {
		return s.compact()
	}
	// Not synced: a crash of the machine in between sends some twice, which the gateway recognises by id.
	if _, err := s.file.WriteAt(headerLine(s.ackedBytes), 0); err != nil {
		return fmt.Errorf("note in the spool what was acknowledged: %w", err)
	}
	return nil
}

// truncate shortens the file to its first line. In between that line says more than there is, and is not believed.
func (s *Spool) truncate() error {
	head := headerLine(0)
	err := s.file.Truncate(int64(len(head)))
	if err == nil {
		_, err = s.file.Seek(int64(len(head)), io.SeekStart)
	}
	if err == nil {
		s.ackedBytes = 0
		_, err = s.file.WriteAt(head, 0)
	}
	if err != nil {
		s.incomplete = true
		return fmt.Errorf("shorten spool: %w", err)
	}
	return nil
}

// Len is the number of detections kept.
func (s *Spool) Len() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.pending) }

// Dropped is how many detections were refused since the spool was opened, because it was full or they were too large.
func (s *Spool) Dropped() uint64 { s.mu.Lock(); defer s.mu.Unlock(); return s.dropped }

// Close closes the file and keeps what is in it.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}
