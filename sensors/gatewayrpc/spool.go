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
	"stanch/sensors/durablefile"
)

// SpoolLimits are the limits of a spool. The zero value means the defaults.
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

// MaxDetectionBytes is the maximum size of one detection, in bytes of its JSON (256 KiB). The gateway rejects larger
// ones, and a detection larger than a message would block all later ones.
const MaxDetectionBytes = 256 << 10

// Spool keeps detections in order until they are acknowledged. It is stored in a file, so it survives a kill of the
// process. The file is synced in the background, so a power loss can lose those detections that were added during the
// last sync, which takes some milliseconds. It is safe for concurrent use.
type Spool struct {
	mu           sync.Mutex
	file         *os.File
	limit        SpoolLimits
	pending      [][]byte // unacknowledged JSON lines
	pendingBytes int64
	dropped      uint64
	ready        chan struct{}
	path         string
	// ackedBytes is the number of acknowledged bytes in the file, after its header line. The header stores it, so that
	// a restart does not send them again.
	ackedBytes int64
	// incomplete reports whether a pending line is missing in the file. The offset of the acknowledged part is then
	// unknown.
	incomplete bool
	// addedLines and syncedLines count the lines that were written to the file, and those of them that are durable.
	addedLines, syncedLines uint64

	syncMu      sync.Mutex    // one sync at a time
	syncNeeded  chan struct{} // receives a value when there may be lines to sync
	closing     chan struct{}
	syncerEnded chan struct{}
	closeOnce   sync.Once
}

// headerFormat is the first line of a spool file. Its length is constant, so that it can be overwritten in place.
const headerFormat = `{"spool":1,"done":%020d}` + "\n"

func headerLine(done int64) []byte { return fmt.Appendf(nil, headerFormat, done) }

// compactThresholdBytes is how many bytes must be acknowledged before the file is rewritten without them.
// Adding waits for the rewrite, so that it must be rare.
const compactThresholdBytes = 8 << 20

// OpenSpool opens the spool in dir and reads what an earlier process left. It drops an incomplete last line. It also
// drops, and counts, a line that is too large to be sent, which an older sensor may have written.
func OpenSpool(dir string, limit SpoolLimits) (*Spool, error) {
	if err := durablefile.MakeDirectory(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	path := filepath.Join(dir, "detections.spool")
	s := &Spool{
		limit: limit.withDefaults(), ready: make(chan struct{}, 1), path: path, syncNeeded: make(chan struct{}, 1),
		closing: make(chan struct{}), syncerEnded: make(chan struct{}),
	}
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
	go s.syncInBackground()
	return s, nil
}

// skipAcknowledged seeks to the first unacknowledged line. A file of an older sensor has no header, and an invalid
// header is ignored: the file is then read from its first line. The gateway recognizes repeated detections by their
// ID.
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

// load adds the lines of a file to the pending lines.
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
			return err //nolint:wrapcheck // the caller adds the context
		}
	}
}

// encodeDetection returns a detection as JSON. If that is larger than MaxDetectionBytes, it omits the pod's labels and
// annotations. The result may still be too large.
func encodeDetection(d sensors.Detection) ([]byte, error) {
	line, err := json.Marshal(d)
	if err != nil || len(line) <= MaxDetectionBytes {
		return line, err //nolint:wrapcheck // the caller adds the context
	}
	d.Event.Container.Pod.Labels, d.Event.Container.Pod.Annotations = nil, nil
	return json.Marshal(d) //nolint:wrapcheck // see above
}

func (s *Spool) enqueue(line []byte) {
	s.pending = append(s.pending, line)
	s.pendingBytes += int64(len(line))
}

// compact replaces the file with one that contains only the pending lines. After an error, the open file may no longer
// be the one at the path, so that nothing counts as stored until a later compact succeeds.
func (s *Spool) compact() error {
	s.incomplete = true
	if err := durablefile.WriteFrom(s.path, 0o600, s.writePending); err != nil {
		return fmt.Errorf("rewrite spool: %w", err)
	}
	next, err := os.OpenFile(s.path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("rewrite spool: %w", err)
	}
	if _, err := next.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("rewrite spool: %w", errors.Join(err, next.Close()))
	}
	if s.file != nil {
		_ = s.file.Close()
	}
	s.file, s.ackedBytes, s.incomplete, s.syncedLines = next, 0, false, s.addedLines
	return nil
}

// writePending writes a file that contains only the pending lines.
func (s *Spool) writePending(w io.Writer) error {
	out := bufio.NewWriter(w)
	_, _ = out.Write(headerLine(0)) // Flush returns the errors
	for _, line := range s.pending {
		_, _ = out.Write(line)
		_ = out.WriteByte('\n')
	}
	return out.Flush() //nolint:wrapcheck // the caller adds the context
}

// syncInBackground makes added lines durable until Close. The caller of Add does not wait: a sync takes milliseconds,
// and the sensor would lose events of the kernel in the meantime.
func (s *Spool) syncInBackground() {
	defer close(s.syncerEnded)
	for {
		select {
		case <-s.closing:
			return
		case <-s.syncNeeded:
			_ = s.Sync() // after a failure Add returns errors, and the next Sync or Acknowledge rewrites the file
		}
	}
}

// Sync makes all added detections durable.
func (s *Spool) Sync() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.mu.Lock()
	if s.incomplete {
		defer s.mu.Unlock()
		return s.compact()
	}
	file, added, synced := s.file, s.addedLines, s.syncedLines
	s.mu.Unlock()
	if added == synced {
		return nil
	}
	err := file.Sync()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && file == s.file { // otherwise the file was replaced in between, by one that is durable
		s.incomplete = true // the kernel may have dropped what it could not write
		return fmt.Errorf("sync spool: %w", err)
	}
	s.syncedLines = max(s.syncedLines, added)
	return nil
}

// Add appends a detection. If the spool is full or the detection is too large, it drops the detection, counts the drop
// and returns an error. If the file cannot be written, it keeps the detection in memory and returns an error.
func (s *Spool) Add(d sensors.Detection) error {
	line, err := encodeDetection(d)
	if err != nil {
		return fmt.Errorf("spool detection %s: %w", d.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(line) > MaxDetectionBytes {
		s.dropped++
		return fmt.Errorf("detection %s of rule %s dropped: it has %d bytes, and a gateway accepts at most %d", d.ID, d.Rule,
			len(line), MaxDetectionBytes)
	}
	if len(s.pending) >= s.limit.MaxDetections || s.pendingBytes+int64(len(line)) > s.limit.MaxBytes {
		s.dropped++
		return fmt.Errorf("spool is full (%d detections, %d bytes): detection %s dropped", len(s.pending), s.pendingBytes,
			d.ID)
	}
	s.enqueue(line)
	s.signalReady()
	s.addedLines++
	defer s.requestSync()
	if s.incomplete {
		return fmt.Errorf("spool detection %s: kept in memory only: an earlier write to the spool failed", d.ID)
	}
	if _, err := s.file.Write(append(line[:len(line):len(line)], '\n')); err != nil {
		s.incomplete = true
		return fmt.Errorf("spool detection %s: kept in memory only: %w", d.ID, err)
	}
	return nil
}

func (s *Spool) requestSync() {
	select {
	case s.syncNeeded <- struct{}{}:
	default:
	}
}

func (s *Spool) signalReady() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Ready returns a channel that receives a value when there may be detections to send.
func (s *Spool) Ready() <-chan struct{} { return s.ready }

// Peek returns the oldest n detections as JSON, or fewer if there are fewer. It does not remove them.
func (s *Spool) Peek(n int) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte(nil), s.pending[:min(n, len(s.pending))]...)
}

// Acknowledge removes the oldest n detections.
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
	// The header is not synced: after a crash of the machine some detections are sent twice, and the gateway
	// recognizes them by their ID.
	if _, err := s.file.WriteAt(headerLine(s.ackedBytes), 0); err != nil {
		return fmt.Errorf("record acknowledgments in the spool: %w", err)
	}
	return nil
}

// truncate shortens the file to its header. If the process dies in between, the header claims more bytes than the file
// has, and skipAcknowledged ignores it.
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
		return fmt.Errorf("truncate spool: %w", err)
	}
	return nil
}

// Len returns the number of pending detections.
func (s *Spool) Len() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.pending) }

// Dropped returns how many detections were dropped since the spool was opened, because it was full or they were too
// large.
func (s *Spool) Dropped() uint64 { s.mu.Lock(); defer s.mu.Unlock(); return s.dropped }

// Close syncs and closes the file. Pending detections stay in it.
func (s *Spool) Close() error {
	s.closeOnce.Do(func() { close(s.closing) })
	<-s.syncerEnded
	err := s.Sync()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(err, s.file.Close()); err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}
