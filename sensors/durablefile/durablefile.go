// Package durablefile writes files that survive a power loss: when a function returns without an error, the content
// and the file's name are on the disk, and a crash at any moment leaves the old or the new content, never a part.
//
// It refuses to skip the sync silently: content that can be recomputed is written with WriteRecomputable. It refuses to
// follow symbolic links: a link at the path is replaced. It is no lock: of two concurrent writers the later one wins.
package durablefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Write replaces or creates the file at path. The file gets exactly the permissions perm. The directory must exist.
// Errors name the path.
func Write(path string, data []byte, perm fs.FileMode) error {
	return WriteFrom(path, perm, writerOf(data))
}

// WriteFrom is like Write, for content that write produces piece by piece. If write returns an error, WriteFrom returns
// that error, and the file does not change.
func WriteFrom(path string, perm fs.FileMode, write func(io.Writer) error) error {
	next, err := newPendingFile(path, perm, write)
	if err != nil {
		return err
	}
	defer func() { _ = next.Cleanup() }()
	if err := next.CloseAtomicallyReplace(); err != nil { // syncs the file, but not the directory
		return err //nolint:wrapcheck // it names the path
	}
	return syncDirectoryOf(path)
}

// WriteRecomputable is like Write without the sync: a power loss can leave an empty or partial file, or none. It is for
// content that the reader recomputes, and whose reader accepts any content. A kill of the process leaves the old or the
// new content.
func WriteRecomputable(path string, data []byte, perm fs.FileMode) error {
	next, err := newPendingFile(path, perm, writerOf(data))
	if err != nil {
		return err
	}
	defer func() { _ = next.Cleanup() }()
	if err := next.File.Close(); err != nil {
		return err //nolint:wrapcheck // it names the path
	}
	return os.Rename(next.Name(), path) //nolint:wrapcheck // it names the path
}

// Create creates the file at path, as Write does. If the path exists, the error wraps fs.ErrExist and nothing changes,
// also if another process creates it at the same time. It is for keys, which nothing may overwrite. The file system
// must support hard links or renames that do not replace.
func Create(path string, data []byte, perm fs.FileMode) error {
	next, err := newPendingFile(path, perm, writerOf(data))
	if err != nil {
		return err
	}
	err = next.Sync()
	if err == nil {
		err = linkOrRename(next.Name(), path)
	}
	if err = errors.Join(err, next.Cleanup()); err != nil { // removes the temporary name, and keeps the other
		return err
	}
	return syncDirectoryOf(path)
}

// linkOrRename gives a file the name path unless that exists. Some network file systems have no hard links.
func linkOrRename(from, path string) error {
	err := os.Link(from, path)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, errors.ErrUnsupported) {
		return err //nolint:wrapcheck // it names both paths
	}
	if renameErr := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); renameErr != nil {
		return &os.LinkError{Op: "rename", Old: from, New: path, Err: renameErr}
	}
	return nil
}

// Open opens the file at path for reading and writing, and creates it with the permissions perm if it is missing. Its
// name is then durable; what the caller writes is durable after the caller's Sync.
func Open(path string, perm fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, perm)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the path
	}
	if err := syncDirectoryOf(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Sync makes an existing file durable: its content and its name. A process that was killed between the rename and the
// sync of the directory leaves a file that others can read and that a power loss can still remove.
func Sync(path string) error {
	if err := syncPath(path); err != nil {
		return err
	}
	return syncDirectoryOf(path)
}

// Rename renames a file within one directory. The content of the file must be durable.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err //nolint:wrapcheck // it names both paths
	}
	return syncDirectoryOf(to)
}

// Remove removes the file at path. A file that does not exist is not an error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err //nolint:wrapcheck // it names the path
	}
	if err := syncDirectoryOf(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// MakeDirectory creates the directory at path and its missing parents, with the permissions perm. Directories that
// exist are not synced.
func MakeDirectory(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err //nolint:wrapcheck // it names the path
	}
	if parent := filepath.Dir(path); parent != path {
		if err := MakeDirectory(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err //nolint:wrapcheck // it names the path
	}
	return syncDirectoryOf(path)
}

func writerOf(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err //nolint:wrapcheck // it names the path
	}
}

// newPendingFile writes a temporary file next to path. The caller must call Cleanup.
func newPendingFile(path string, perm fs.FileMode, write func(io.Writer) error) (*renameio.PendingFile, error) {
	removeLeftovers(path)
	// The directory is named because renameio otherwise prefers the system's temporary directory, where a crash would
	// leave a copy of a key.
	next, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)),
		renameio.WithStaticPermissions(perm))
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the path
	}
	if err := write(next); err != nil {
		_ = next.Cleanup() // leave nothing behind on a full disk
		return nil, err
	}
	return next, nil
}

// leftoverAge is the age from which a temporary file counts as left by a crash. No write takes as long.
const leftoverAge = time.Hour

// removeLeftovers removes temporary files that crashes left for path. Failures are ignored: a leftover does no harm,
// and an unusable directory fails the write.
func removeLeftovers(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		// renameio names them .BASE followed by a random 63-bit number.
		number, ok := strings.CutPrefix(e.Name(), "."+filepath.Base(path))
		if !ok || number == "" || strings.Trim(number, "0123456789") != "" {
			continue
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > leftoverAge {
			_ = os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}

func syncDirectoryOf(path string) error { return syncPath(filepath.Dir(path)) }

// syncPath syncs a file or a directory. A file system that cannot sync has nothing to wait for.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer func() { _ = f.Close() }()
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EROFS) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err //nolint:wrapcheck // it names the path
}
