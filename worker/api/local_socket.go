package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// NoSocketGroup lets only the user who runs Stanch, and root, connect to the local socket.
const NoSocketGroup = -1

// LookUpSocketGroup returns the id of the group that may connect to the local socket; NoSocketGroup for the empty name.
// The error of an unknown group says how to create it.
func LookUpSocketGroup(name string) (int, error) {
	if name == "" {
		return NoSocketGroup, nil
	}
	g, err := user.LookupGroup(name)
	if unknown := user.UnknownGroupError(""); errors.As(err, &unknown) {
		return 0, fmt.Errorf(
			"unknown socket group %q; create it with `groupadd --system %s` and add each approver with `usermod -aG %s USER`",
			name,
			name,
			name,
		)
	}
	if err != nil {
		return 0, fmt.Errorf("look up the socket group %q: %w", name, err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, fmt.Errorf("look up the socket group %q: %w", name, err)
	}
	return gid, nil
}

// ListenLocalSocket opens the local socket. Only root, the user who runs Stanch and, unless it is NoSocketGroup, the
// members of group may connect: the group may traverse the socket's directory, and private files in it stay private. A
// directory that everybody may traverse is not changed, because it may contain other programs' files. The kernel's peer
// credentials identify people, never the group.
func ListenLocalSocket(path string, group int) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil { //nolint:noctx // local
		_ = c.Close()
		return nil, fmt.Errorf("open the local socket: another Stanch instance is listening on %s", path)
	}
	_ = os.Remove(path)
	l, err := net.Listen("unix", path) //nolint:noctx // local
	if err != nil {
		return nil, fmt.Errorf("open the local socket: %w", err)
	}
	if err := setSocketAccess(path, group); err != nil {
		return nil, errors.Join(fmt.Errorf("open the local socket: %w", err), l.Close())
	}
	return l, nil
}

// groupTraverseMode is the mode of a directory that a group may traverse but not read.
const groupTraverseMode fs.FileMode = 0o710

// setSocketAccess sets who may connect to the socket.
func setSocketAccess(path string, group int) error {
	dir := filepath.Dir(path)
	if group == NoSocketGroup {
		// Revoke the group's access from an earlier start.
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm() == groupTraverseMode {
			if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory
				return err //nolint:wrapcheck // the error names the file
			}
		}
		return os.Chmod(path, 0o600) //nolint:wrapcheck // the error names the file
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err //nolint:wrapcheck // the error names the directory
	}
	shared := info.Mode().Perm()&0o001 != 0
	if !shared {
		if err := restrictSiblingFiles(dir, path); err != nil {
			return err
		}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err //nolint:wrapcheck // the error names the file
	}
	for parent := filepath.Dir(abs); ; parent = filepath.Dir(parent) {
		if err := checkGroupCanTraverse(parent, group); err != nil {
			return err
		}
		if parent == filepath.Dir(parent) {
			break
		}
	}
	if !shared {
		err = errors.Join(os.Chown(dir, -1, group), os.Chmod(dir, groupTraverseMode))
	}
	return errors.Join(err, os.Chown(path, -1, group), os.Chmod(path, 0o660)) //nolint:gosec // the group may connect
}

// restrictSiblingFiles removes all permissions of group and others from the files next to the socket: whoever traverses
// the directory must not open a file by its name.
func restrictSiblingFiles(dir, socket string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err //nolint:wrapcheck // the error names the directory
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err //nolint:wrapcheck // the error names the file
		}
		if path == socket || info.Mode()&fs.ModeSymlink != 0 || info.Mode().Perm()&0o077 == 0 {
			continue
		}
		if err := os.Chmod(path, info.Mode().Perm()&0o700); err != nil {
			return err //nolint:wrapcheck // the error names the file
		}
	}
	return nil
}

// checkGroupCanTraverse returns an error unless members of the group may traverse a directory that is not Stanch's own.
func checkGroupCanTraverse(dir string, group int) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err //nolint:wrapcheck // the error names the directory
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	mode := info.Mode().Perm()
	if mode&0o001 != 0 || int(st.Gid) == group && mode&0o010 != 0 {
		return nil
	}
	return fmt.Errorf("the socket group cannot traverse %s (mode %04o); run `chmod o+x %s`, or choose another --data",
		dir, mode, dir)
}
