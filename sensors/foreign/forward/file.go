package forward

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stanch/sensors/foreign"
)

// follower reads a file as it grows, and the next one when it is rotated away: by rename (logrotate, lumberjack, the
// kubelet) or by truncation (copytruncate). A library for it (nxadm/tail) loses what is written between the rotation and
// its noticing, and cannot go on in a file that was renamed while nobody looked.
type follower struct {
	Options
	file   *os.File
	reader *lineReader
	id     identity
	base   int64 // where reading began in the file
	// kept: there is a state. Without one, what is rotated away before the first batch is carried would not be found again.
	kept bool
	// idle counts how often there was nothing new since the file was found to be rotated away.
	idle int
}

// patience is how often the end of a rotated file is looked at: its writer may not know yet that it is another's.
const patience = 3

// follow opens a file where it was left.
func follow(o Options) (*follower, error) {
	f := &follower{Options: o}
	if s, err := os.Stat(o.File); err == nil && !s.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file; a pipe is read with `-`", o.File)
	} else if o.Once && err != nil {
		return nil, fmt.Errorf("read %s: %w", o.File, err)
	}
	kept, err := loadState(o.State)
	if err != nil {
		return nil, err
	}
	if kept == nil {
		if !fileExists(o.File) {
			return f, nil // all that will be in it is new
		}
		return f, f.open(o.File, func(file *os.File, size int64) int64 {
			if o.Beginning || o.Once {
				return 0
			}
			return lastLineEnd(file, size)
		})
	}
	f.kept = true
	for _, path := range append([]string{o.File}, siblings(o.File)...) {
		if kept.matches(path) {
			return f, f.open(path, func(*os.File, int64) int64 { return kept.Offset })
		}
	}
	o.Say("the file in which reading ended is gone: what was written into it since is lost; %s is read from its beginning", o.File)
	return f, nil
}

func (f *follower) close() {
	if f.file != nil {
		_ = f.file.Close()
	}
}

func (f *follower) open(path string, from func(*os.File, int64) int64) error {
	file, err := os.Open(path) //nolint:gosec // who runs this names the file
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	s, err := file.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("look at %s: %w", path, err), file.Close())
	}
	if !s.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("%s is no regular file", path), file.Close())
	}
	f.close()
	f.file, f.idle = file, 0
	f.id = identityOf(s)
	if err := f.from(from(file, s.Size())); err != nil || f.kept {
		return err
	}
	f.kept = true
	return f.carried(place{file: f.id, offset: f.base})
}

// from begins to read at an offset of the open file.
func (f *follower) from(offset int64) error {
	if _, err := f.file.Seek(offset, io.SeekStart); err != nil {
		return fmt.Errorf("go to byte %d of %s: %w", offset, f.file.Name(), err)
	}
	f.base, f.reader = offset, &lineReader{from: bufio.NewReaderSize(f.file, 64<<10)}
	f.id.Head, f.id.HeadBytes = "", 0
	return f.fingerprint(offset)
}

// fingerprint takes in the file's beginning up to an offset, so that another file with the same inode is told apart.
func (f *follower) fingerprint(upTo int64) error {
	n := min(upTo, headBytes)
	if n <= f.id.HeadBytes {
		return nil
	}
	head, err := headOf(f.file, n)
	if err != nil {
		return err
	}
	f.id.Head, f.id.HeadBytes = head, n
	return nil
}

// next waits for a line.
func (f *follower) next(ctx context.Context) (line, error) {
	for {
		if f.file == nil {
			err := f.open(f.File, func(*os.File, int64) int64 { return 0 })
			if errors.Is(err, fs.ErrNotExist) {
				err = f.wait(ctx)
			}
			if err != nil {
				return line{}, err
			}
			continue
		}
		text, tooLong, err := f.reader.next()
		if errors.Is(err, io.EOF) {
			var ended bool
			if text, ended, err = f.atEnd(ctx); err == nil && !ended {
				continue
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return line{}, fmt.Errorf("read %s: %w", f.File, err)
		}
		f.idle = 0
		at := f.base + f.reader.read
		if err := f.fingerprint(at); err != nil {
			return line{}, err
		}
		l, ok := f.reader.whole(text, tooLong)
		if !ok && err != nil {
			return line{}, err
		}
		if ok {
			l.place = place{file: f.id, offset: at}
			return l, nil
		}
	}
}

// atEnd decides what the end of a file means: that nothing is there now, that it was truncated, that it was rotated away
// and the next one is to be opened, or, if it is read once, that this is all. It gives a last line that has no end.
func (f *follower) atEnd(ctx context.Context) (text []byte, ended bool, err error) {
	at := f.base + f.reader.read + f.reader.pending
	own, err := f.file.Stat()
	if err != nil {
		return nil, false, fmt.Errorf("look: %w", err)
	}
	if same, err := f.sameHead(); err != nil {
		return nil, false, err
	} else if own.Size() < at || !same {
		f.Say("%s was truncated: it is read from its beginning", f.file.Name())
		return nil, false, f.from(0)
	}
	now, err := os.Stat(f.File)
	rotated := err == nil && identityOf(now) != (identity{Device: f.id.Device, Inode: f.id.Inode})
	switch {
	case f.Once && !rotated:
		if len(f.reader.part) > 0 {
			return f.reader.rest(), true, nil
		}
		return nil, true, io.EOF
	case rotated && f.idle >= patience:
		if len(f.reader.part) > 0 {
			return f.reader.rest(), true, nil
		}
		return nil, false, f.open(f.after(own), func(*os.File, int64) int64 { return 0 })
	case rotated:
		f.idle++
	}
	return nil, false, f.wait(ctx)
}

// sameHead tells whether the file still begins with what was read: it may have been truncated and have grown past where
// reading stands.
func (f *follower) sameHead() (bool, error) {
	if f.id.HeadBytes == 0 {
		return true, nil
	}
	head, err := headOf(f.file, f.id.HeadBytes)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil
	}
	return head == f.id.Head, err
}

func (f *follower) wait(ctx context.Context) error {
	timer := time.NewTimer(f.Poll)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// after is the file that follows one that was rotated away: the eldest of those that were written after it.
func (f *follower) after(own fs.FileInfo) string {
	for _, path := range siblings(f.File) {
		if s, err := os.Stat(path); err == nil && identityOf(s) != identityOf(own) && s.ModTime().After(own.ModTime()) {
			return path
		}
	}
	return f.File
}

func (f *follower) carried(p place) error {
	if f.State == "" {
		return nil
	}
	return saveState(f.State, state{File: f.File, identity: p.file, Offset: p.offset})
}

// siblings are the rotated files of a log, the eldest first: "x.log.1" of logrotate and the kubelet, "x-2026-11-23….log" of
// lumberjack. What was compressed is not read.
func siblings(path string) []string {
	dir, base := filepath.Split(path)
	ext := filepath.Ext(base)
	stem := strings.TrimSuffix(base, ext) + "-"
	entries, err := os.ReadDir(cmp.Or(dir, "."))
	if err != nil {
		return nil
	}
	type rotated struct {
		path string
		at   time.Time
	}
	var all []rotated
	for _, e := range entries {
		name := e.Name()
		dated := strings.HasPrefix(name, stem) && strings.HasSuffix(name, ext) && len(name) > len(stem) && name[len(stem)] >= '0' && name[len(stem)] <= '9'
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || strings.HasSuffix(name, ".gz") || !dated && !strings.HasPrefix(name, base+".") {
			continue
		}
		all = append(all, rotated{filepath.Join(dir, name), info.ModTime()})
	}
	slices.SortFunc(all, func(a, b rotated) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.path, b.path)) })
	var out []string
	for _, r := range all {
		out = append(out, r.path)
	}
	return out
}

// lastLineEnd is behind the last whole line of a file.
func lastLineEnd(file *os.File, size int64) int64 {
	n := min(size, foreign.MaxRecord)
	tail := make([]byte, n)
	if _, err := file.ReadAt(tail, size-n); err != nil {
		return size
	}
	if i := bytes.LastIndexByte(tail, '\n'); i >= 0 {
		return size - n + int64(i) + 1
	}
	return size - n
}
