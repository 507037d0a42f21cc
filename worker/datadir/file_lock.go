package datadir

import (
	"os"

	"golang.org/x/sys/unix"
)

func lockFileExclusive(f *os.File) error {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) //nolint:wrapcheck // the caller adds context
}
