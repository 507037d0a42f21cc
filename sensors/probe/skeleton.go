package probe

import (
	"context"
	"errors"

	"stanch/sensors"
)

// Probe observes the containers of this machine. Its methods may be called from several goroutines.
type Probe struct{}

// Load loads and attaches the programs. It fails only if nothing at all can be observed; a hook that this kernel
// lacks is off and said in Status.
func Load(Options) (*Probe, error) { return nil, errors.New("not yet") }

// Run hands every event to f, one at a time, until ctx ends (then it returns nil) or Close. An event's
// Container has only CgroupID and CgroupPath set: see package identity. f must not block for long: the rings are finite.
func (p *Probe) Run(ctx context.Context, f func(sensors.Event)) error { return errors.New("not yet") }

// Ignore filters a cgroup in the kernel from now on: the sensor's own, for example.
func (p *Probe) Ignore(cgroupID uint64) error { return errors.New("not yet") }

// Status tells what is on and what was lost.
func (p *Probe) Status() Status { return Status{} }

// Close detaches everything. It does not touch egress locks.
func (p *Probe) Close() error { return nil }

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
