package snapshot

import (
	"errors"
	"time"
)

const (
	// readTimeout bounds one read of what a container may let wait: its memory (arguments, environment) and its executables
	// may lie on a file system of its own that never answers.
	readTimeout = 500 * time.Millisecond
	// maxStuckReads bounds how many such reads are left behind in one snapshot.
	maxStuckReads = 6
)

var (
	errReadStuck         = errors.New("it does not answer; the container may keep it on a file system of its own")
	errTooManyStuckReads = errors.New("not read: too many others do not answer")
)

// readWithTimeout runs a read and gives up on it after limit. A read that is given up goes on in its goroutine, perhaps for ever:
// it must touch nothing but what it returns.
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

// fileHead is a file's beginning.
type fileHead struct {
	data      []byte
	truncated bool
}

// readProcFile reads a file of /proc that shows a process's memory.
func (k *collector) readProcFile(path string, limit int64) ([]byte, bool, error) {
	p, err := readWithTimeout(k, readTimeout, func() (fileHead, error) {
		data, cut, err := readLimited(path, limit)
		return fileHead{data, cut}, err
	})
	return p.data, p.truncated, err
}
