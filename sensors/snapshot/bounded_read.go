package snapshot

import (
	"errors"
	"time"
)

const (
	// readTimeout limits one read that a container may block: its memory (arguments, environment) and its executables
	// may be on a file system that never responds.
	readTimeout = 500 * time.Millisecond
	// maxStuckReads is the maximum number of abandoned reads in one snapshot.
	maxStuckReads = 6
)

var (
	errReadStuck = errors.New(
		"the read timed out; the file may be on a container file system that is not responding",
	)
	errTooManyStuckReads = errors.New("not read: too many other reads timed out")
)

// readWithTimeout runs read and abandons it after limit. An abandoned read continues in its goroutine, perhaps
// forever, so it must not access anything except its return values.
func readWithTimeout[T any](k *collector, limit time.Duration, read func() (T, error)) (T, error) {
	var none T
	if k.stuckReads >= maxStuckReads {
		return none, errTooManyStuckReads
	}
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := read()
		done <- answer{value, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-done:
		return a.value, a.err
	case <-timer.C:
		k.stuckReads++
		return none, errReadStuck
	}
}

// fileHead is the beginning of a file.
type fileHead struct {
	data      []byte
	truncated bool
}

// readProcFile reads a file in /proc that exposes the memory of a process.
func (k *collector) readProcFile(path string, limit int64) ([]byte, bool, error) {
	p, err := readWithTimeout(k, readTimeout, func() (fileHead, error) {
		data, cut, err := readLimited(path, limit)
		return fileHead{data, cut}, err
	})
	return p.data, p.truncated, err
}
