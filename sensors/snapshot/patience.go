package snapshot

import (
	"errors"
	"time"
)

const (
	// readTime bounds one read of what a container may let wait: its memory (arguments, environment) and its executables
	// may lie on a file system of its own that never answers.
	readTime = 500 * time.Millisecond
	// maxStuck bounds how many such reads are left behind in one snapshot.
	maxStuck = 6
)

var (
	errStuck     = errors.New("it does not answer; the container may keep it on a file system of its own")
	errManyStuck = errors.New("not read: too many others do not answer")
)

// within runs a read and gives up on it after limit. A read that is given up goes on in its goroutine, perhaps for ever:
// it must touch nothing but what it returns.
func within[T any](k *taking, limit time.Duration, read func() (T, error)) (T, error) {
	var none T
	if k.stuck >= maxStuck {
		return none, errManyStuck
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
		k.stuck++
		return none, errStuck
	}
}

// portion is a file's beginning.
type portion struct {
	data []byte
	cut  bool
}

// read reads a file of /proc that shows a process's memory.
func (k *taking) read(path string, limit int64) ([]byte, bool, error) {
	p, err := within(k, readTime, func() (portion, error) {
		data, cut, err := readMax(path, limit)
		return portion{data, cut}, err
	})
	return p.data, p.cut, err
}
