package probe

import "golang.org/x/sys/unix"

// Calls that newer architectures do not have.
const (
	sysChmod    = unix.SYS_CHMOD
	sysLink     = unix.SYS_LINK
	sysUnlink   = unix.SYS_UNLINK
	sysRename   = unix.SYS_RENAME
	sysRenameat = unix.SYS_RENAMEAT
)
