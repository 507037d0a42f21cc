package api_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	testrequire "stanch/testenv/prereq"
	"stanch/worker/api"
)

// runAsUser runs f on its own thread with the file-system permissions of another user and group.
func runAsUser(t *testing.T, uid, gid int, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_ = unix.Setfsgid(gid)
		_ = unix.Setfsuid(uid)
		done <- f()
	}()
	return <-done
}

func connectTo(path string) func() error {
	return func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
}

// newSocketDir returns a short path in a directory that everybody may traverse.
func newSocketDir(t *testing.T) string {
	t.Helper()
	testrequire.RequireRoot(t)
	dir, err := os.MkdirTemp("/var/tmp", "sock-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Members of the socket's group can connect, but not read anything else in the data directory; others cannot connect.
func TestSocketGroupCanConnectButNotReadData(t *testing.T) {
	const group, uid = 54321, 54322
	dir := newSocketDir(t)
	secret, key := filepath.Join(dir, "secret"), filepath.Join(dir, "keys")
	require.NoError(
		t,
		os.WriteFile(secret, []byte("x"), 0o644),
	)
	require.NoError(
		t,
		os.Mkdir(key, 0o755),
	)
	require.NoError(
		t,
		os.WriteFile(filepath.Join(key, "seed"), []byte("x"), 0o644),
	)
	socket := filepath.Join(dir, "stanch.sock")
	l, err := api.ListenLocalSocket(socket, group)
	require.NoError(t, err)
	read := func(path string) func() error {
		return func() error { _, err := os.ReadFile(path); return err }
	}
	require.NoError(t, runAsUser(t, uid, group, connectTo(socket)))
	require.ErrorIs(t, runAsUser(t, uid, uid, connectTo(socket)), unix.EACCES, "another group")
	for _, path := range []string{secret, filepath.Join(key, "seed")} {
		require.ErrorIs(t, runAsUser(t, uid, group, read(path)), os.ErrPermission, path)
	}
	require.ErrorIs(t, runAsUser(t, uid, group, func() error { _, err := os.ReadDir(dir); return err }), os.ErrPermission)
	require.NoError(t, l.Close())

	// Without a group, the next start revokes the access.
	l, err = api.ListenLocalSocket(socket, api.NoSocketGroup)
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	require.ErrorIs(t, runAsUser(t, uid, group, connectTo(socket)), unix.EACCES)
	require.NoError(t, runAsUser(t, 0, 0, connectTo(socket)))
}

// A directory that everybody may traverse is not Stanch's alone: nothing in it is changed, and the socket belongs to
// the group.
func TestSharedSocketDirectoryIsNotChanged(t *testing.T) {
	const group, uid = 54321, 54322
	dir := newSocketDir(t)
	for _, mode := range []os.FileMode{0o755, 0o777 | os.ModeSticky} {
		require.NoError(t, os.Chmod(dir, mode))
		beside := filepath.Join(dir, "notes")
		require.NoError(t, os.WriteFile(beside, []byte("x"), 0o644))
		socket := filepath.Join(dir, "stanch.sock")
		l, err := api.ListenLocalSocket(socket, group)
		require.NoError(t, err)
		for path, want := range map[string]os.FileMode{dir: mode | os.ModeDir, beside: 0o644} {
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.Equal(t, want, info.Mode(), path)
		}
		require.NoError(t, runAsUser(t, uid, group, connectTo(socket)))
		require.ErrorIs(t, runAsUser(t, uid, uid, connectTo(socket)), unix.EACCES, "another group")
		require.NoError(t, l.Close())
	}
}

func TestUnreachableSocketIsReported(t *testing.T) {
	dir := filepath.Join(newSocketDir(t), "data") // in a directory with mode 0700
	require.NoError(t, os.Mkdir(dir, 0o700))
	_, err := api.ListenLocalSocket(filepath.Join(dir, "stanch.sock"), 54321)
	require.ErrorContains(t, err, "the socket group cannot traverse "+filepath.Dir(dir)+" (mode 0700); run `chmod o+x")
}

func TestUnknownSocketGroupErrorHasRemedy(t *testing.T) {
	_, err := api.LookUpSocketGroup("no-such-group")
	require.EqualError(
		t,
		err,
		"unknown socket group \"no-such-group\"; create it with `groupadd --system no-such-group` and add each approver with `usermod -aG no-such-group USER`",
	)
	gid, err := api.LookUpSocketGroup("root")
	require.NoError(t, err)
	require.Zero(t, gid)
	gid, err = api.LookUpSocketGroup("")
	require.NoError(t, err)
	require.Equal(t, api.NoSocketGroup, gid)
}
