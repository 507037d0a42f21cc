package probe

import "errors"

// Lock is this node's egress lock: it outlives the process that applied it, and ends by itself.
type Lock struct{}

// OpenLock loads the lock's programs, or adopts those pinned under dir by an earlier process. Empty dir means DefaultLockDir.
func OpenLock(dir string) (*Lock, error) { return nil, errors.New("not yet") }

// Apply holds the request's cgroups and wires from now on. Applying again with the same lease replaces the
// request (extends, shortens, other allow list) without a gap.
func (l *Lock) Apply(LockRequest) (LockState, error) { return LockState{}, errors.New("not yet") }

// Release ends the lock of a lease now. Releasing what is not held is no error.
func (l *Lock) Release(lease string) error { return errors.New("not yet") }

// State tells whether a cgroup, or one above it, is held. cgroupID is any cgroup of a pod or container.
func (l *Lock) State(cgroupID uint64) (LockState, error) { return LockState{}, errors.New("not yet") }

// List gives every lock in force, and forgets those that have lapsed.
func (l *Lock) List() ([]LockState, error) { return nil, errors.New("not yet") }

// Close lets go of this process's handles. Locks stay in force.
func (l *Lock) Close() error { return nil }

// Disarm removes every lock, program and pin under dir. It works without an open Lock, and when there is nothing.
func Disarm(dir string) error { return errors.New("not yet") }

// FindWires gives the host-side ends of the network interfaces that a process can send on, entering its
// network namespace in a thread of its own. For a process in the host's network namespace it gives ErrHostNetwork.
func FindWires(pid int) ([]Wire, error) { return nil, errors.New("not yet") }
