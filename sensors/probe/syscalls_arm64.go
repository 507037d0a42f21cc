package probe

// Calls that this architecture does not have: the kernel has no tracepoint for them.
const (
	sysChmod    = 0
	sysLink     = 0
	sysUnlink   = 0
	sysRename   = 0
	sysRenameat = 38
)
