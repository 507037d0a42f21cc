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

	"stanch/sensors/integrations"
)

// follower reads a file as it grows, and continues with the next file after a rotation by rename (logrotate,
// lumberjack, the kubelet) or by truncation (copytruncate). The library nxadm/tail is not used: it loses lines that
// are written between a rotation and its detection, and cannot resume in a file that was renamed while it was not
// running.
type follower struct {
	Options
	file        *os.File
	reader      *lineReader
	fileID      fileIdentity
	startOffset int64 // offset at which reading of the file started
	// hasSavedState reports whether there is a saved state. Without one, a file that is rotated before the first batch
	// is delivered would not be found again.
	hasSavedState bool
	// idlePolls counts the polls without new data since the rotation was detected.
	idlePolls int
}

// maxIdlePolls is how many times the end of a rotated file is polled, because its writer may not know about the
// rotation yet.
const maxIdlePolls = 3

// openFollower opens the file at the saved checkpoint.
func openFollower(o Options) (*follower, error) {
	f := &follower{Options: o}
	if s, err := os.Stat(o.File); err == nil && !s.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file; to read a pipe use `-`", o.File)
	} else if o.Once && err != nil {
		return nil, fmt.Errorf("read %s: %w", o.File, err)
	}
	kept, err := loadState(o.State)
	if err != nil {
		return nil, err
	}
	if kept == nil {
		if !fileExists(o.File) {
			return f, nil // everything in it will be new
		}
		return f, f.openFile(o.File, func(file *os.File, size int64) int64 {
			if o.Beginning || o.Once {
				return 0
			}
			return lastLineEnd(file, size)
		})
	}
	f.hasSavedState = true
	for _, path := range append([]string{o.File}, listRotatedFiles(o.File)...) {
		if kept.matches(path) {
			return f, f.openFile(path, func(*os.File, int64) int64 { return kept.Offset })
		}
	}
	o.Logf(
		"the previously read file is missing, so any lines written to it since then are lost; reading %s from its beginning",
		o.File,
	)
	return f, nil
}

func (f *follower) close() {
	if f.file != nil {
		_ = f.file.Close()
	}
}

func (f *follower) openFile(path string, from func(*os.File, int64) int64) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	s, err := file.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("stat %s: %w", path, err), file.Close())
	}
	if !s.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("%s is not a regular file", path), file.Close())
	}
	f.close()
	f.file, f.idlePolls = file, 0
	f.fileID = fileIdentityOf(s)
	if err := f.seekTo(from(file, s.Size())); err != nil || f.hasSavedState {
		return err
	}
	f.hasSavedState = true
	return f.commit(checkpoint{fileID: f.fileID, offset: f.startOffset})
}

// seekTo continues reading at an offset of the open file.
func (f *follower) seekTo(offset int64) error {
	if _, err := f.file.Seek(offset, io.SeekStart); err != nil {
		return fmt.Errorf("seek to byte %d of %s: %w", offset, f.file.Name(), err)
	}
	f.startOffset, f.reader = offset, &lineReader{input: bufio.NewReaderSize(f.file, 64<<10)}
	f.fileID.Head, f.fileID.HeadBytes = "", 0
	return f.updateFingerprint(offset)
}

// updateFingerprint extends the fingerprint to at most upTo bytes, to distinguish another file with the same inode.
func (f *follower) updateFingerprint(upTo int64) error {
	n := min(upTo, fingerprintBytes)
	if n <= f.fileID.HeadBytes {
		return nil
	}
	head, err := hashFileHead(f.file, n)
	if err != nil {
		return err
	}
	f.fileID.Head, f.fileID.HeadBytes = head, n
	return nil
}

// nextLine waits for the next line.
func (f *follower) nextLine(ctx context.Context) (line, error) {
	for {
		if f.file == nil {
			err := f.openFile(f.File, func(*os.File, int64) int64 { return 0 })
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
			if text, ended, err = f.handleEOF(ctx); err == nil && !ended {
				continue
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return line{}, fmt.Errorf("read %s: %w", f.File, err)
		}
		f.idlePolls = 0
		at := f.startOffset + f.reader.consumedBytes
		if err := f.updateFingerprint(at); err != nil {
			return line{}, err
		}
		l, ok := f.reader.assembleLine(text, tooLong)
		if !ok && err != nil {
			return line{}, err
		}
		if ok {
			l.checkpoint = checkpoint{fileID: f.fileID, offset: at}
			return l, nil
		}
	}
}

// handleEOF decides what the end of a file means: no new data yet, a truncation, a rotation after which the next file
// is opened, or, with Once, the end. It returns a last line without a line break.
func (f *follower) handleEOF(ctx context.Context) (text []byte, ended bool, err error) {
	at := f.startOffset + f.reader.consumedBytes + f.reader.pendingBytes
	own, err := f.file.Stat()
	if err != nil {
		return nil, false, fmt.Errorf("stat: %w", err)
	}
	if same, err := f.headUnchanged(); err != nil {
		return nil, false, err
	} else if own.Size() < at || !same {
		f.Logf("%s was truncated; reading it from its beginning", f.file.Name())
		return nil, false, f.seekTo(0)
	}
	now, err := os.Stat(f.File)
	rotated := err == nil && fileIdentityOf(now) != (fileIdentity{Device: f.fileID.Device, Inode: f.fileID.Inode})
	switch {
	case f.Once && !rotated:
		if len(f.reader.partialLine) > 0 {
			return f.reader.takeRemainder(), true, nil
		}
		return nil, true, io.EOF
	case rotated && f.idlePolls >= maxIdlePolls:
		if len(f.reader.partialLine) > 0 {
			return f.reader.takeRemainder(), true, nil
		}
		return nil, false, f.openFile(f.nextRotatedFile(own), func(*os.File, int64) int64 { return 0 })
	case rotated:
		f.idlePolls++
	}
	return nil, false, f.wait(ctx)
}

// headUnchanged reports whether the beginning of the file is unchanged. The file may have been truncated and have
// grown beyond the current offset since then.
func (f *follower) headUnchanged() (bool, error) {
	if f.fileID.HeadBytes == 0 {
		return true, nil
	}
	head, err := hashFileHead(f.file, f.fileID.HeadBytes)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil
	}
	return head == f.fileID.Head, err
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

// nextRotatedFile returns the file that follows a rotated one: the oldest of the files that were written after it.
func (f *follower) nextRotatedFile(own fs.FileInfo) string {
	for _, path := range listRotatedFiles(f.File) {
		if s, err := os.Stat(path); err == nil && fileIdentityOf(s) != fileIdentityOf(own) &&
			s.ModTime().After(own.ModTime()) {
			return path
		}
	}
	return f.File
}

func (f *follower) commit(p checkpoint) error {
	if f.State == "" {
		return nil
	}
	return saveState(f.State, savedState{File: f.File, fileIdentity: p.fileID, Offset: p.offset})
}

// listRotatedFiles returns the rotated files of a log, the oldest first: "x.log.1" of logrotate and the kubelet,
// "x-2026-11-23….log" of lumberjack. It ignores compressed files.
func listRotatedFiles(path string) []string {
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
		dated := strings.HasPrefix(name, stem) && strings.HasSuffix(name, ext) && len(name) > len(stem) &&
			name[len(stem)] >= '0' && name[len(stem)] <= '9'
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || strings.HasSuffix(name, ".gz") || !dated &&
			!strings.HasPrefix(name, base+".") {
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

// lastLineEnd returns the offset after the last complete line of a file.
func lastLineEnd(file *os.File, size int64) int64 {
	n := min(size, integrations.MaxRecordBytes)
	tail := make([]byte, n)
	if _, err := file.ReadAt(tail, size-n); err != nil {
		return size
	}
	if i := bytes.LastIndexByte(tail, '\n'); i >= 0 {
		return size - n + int64(i) + 1
	}
	return size - n
}
