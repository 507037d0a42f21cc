package probe

// Calls that this architecture has not: the kernel has no tracepoint for them.
const (
	sysChmod    = 0
	sysLink     = 0
	sysUnlink   = 0
	sysRename   = 0
	sysRenameat = 38
)
