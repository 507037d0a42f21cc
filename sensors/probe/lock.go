package probe

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"stanch/bpf"
	"stanch/sensors/containermeta"
)

// EgressLock is this node's egress lock, which blocks the outgoing traffic of locked targets in the kernel. Locks stay
// in force when the process that applied them exits, and expire on their own. It is safe for concurrent use. Create it
// with OpenEgressLock.
type EgressLock struct {
	mu         sync.Mutex
	pinDir     string   // the pin directory of this layout
	cgroupRoot string   // the mount point of cgroup v2
	ownerFile  *os.File // locked as long as this process may change the pins
	collection *ebpf.Collection
	cgroupLink link.Link // the link of the cgroup program
}

// The structures of bpf/src/lock.bpf.c. encoding/binary reads and writes them, so all padding is explicit.
type (
	lockRecord struct {
		Expiry uint64
		Flags  uint32
		_      uint32
		Lease  [160]byte
		Target [272]byte
	}
	packetCountsRecord struct {
		Denied   [5]uint64
		Answered uint64
		Asked    uint64
	}
	lockedObjectKey struct {
		ID   uint64
		Kind uint32
		_    uint32
	}
	lockedObjectValue struct {
		Lock uint64
		MAC  [6]byte
		_    [2]byte
	}
	addressKey struct {
		Lock    uint64
		Address [16]byte
		Role    uint32
		_       uint32
	}
	allowKey struct {
		Prefix            uint32
		LockHigh, LockLow uint32
		Address           [16]byte
	}
	macKey struct {
		Lock uint64
		MAC  [6]byte
		_    [2]byte
	}
	proberKey struct {
		Cgroup uint64
		UID    uint32
		_      uint32
	}
	allowRule struct {
		Port     uint16
		Protocol uint8
		Used     uint8
	}
	allowValue [8]allowRule
)

const (
	objectCgroup, objectVeth        = 0, 1
	addressRoleNode, addressRolePod = 0, 1
	lockFlagHostNetwork             = 1
	lockFlagAllowList               = 2
	lockFlagNodeMACsOnly            = 4
	lockFlagRootProbes              = 8
)

var deniedProtocols = []string{"tcp", "udp", "icmp", "arp", "other"}

// OpenEgressLock loads the lock's programs, or adopts those that an earlier process pinned under dir. An empty dir
// means DefaultEgressLockDir. It creates the directory and mounts the BPF file system if necessary. It returns
// ErrInUse if another process has the lock open, and ErrNotSupported if this kernel cannot load the programs.
func OpenEgressLock(dir string) (*EgressLock, error) {
	if dir == "" {
		dir = DefaultEgressLockDir
	}
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		return nil, err
	}
	l := &EgressLock{pinDir: filepath.Join(dir, lockLayout), cgroupRoot: root}
	if err := l.loadOrAdopt(dir); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func (l *EgressLock) loadOrAdopt(dir string) error {
	if err := ensureBPFMount(dir); err != nil {
		return err
	}
	var err error
	if l.ownerFile, err = acquirePinDir(dir); errors.Is(err, ErrInUse) {
		return fmt.Errorf("open the egress lock: %w%s", err, inUseRemedy)
	} else if err != nil {
		return fmt.Errorf("open the egress lock: %w", err)
	}
	if err := os.MkdirAll(l.pinDir, 0o700); err != nil {
		return fmt.Errorf("create the lock's directory: %w", err)
	}
	spec, err := bpf.LoadLock()
	if err != nil {
		return fmt.Errorf("read the embedded programs: %w", err)
	}
	for _, m := range spec.Maps {
		if m.Name != ".rodata" && m.Name != ".bss" && m.Name != ".data" {
			m.Pinning = ebpf.PinByName
		}
	}
	l.collection, err = ebpf.NewCollectionWithOptions(spec,
		ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: l.pinDir}})
	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return fmt.Errorf(
			"adopt the lock pinned in %s (another version created it; wait until its locks expire, then run `stanch-sensor cleanup`): %w",
			l.pinDir,
			err,
		)
	case err != nil:
		return fmt.Errorf("load the egress lock: %w: %s", ErrNotSupported, shortReason(err))
	}
	if err := l.attachCgroup(); err != nil {
		return err
	}
	return l.adoptVeths()
}

// attachCgroup attaches the cgroup program, or replaces the program of the pinned link without a gap.
func (l *EgressLock) attachCgroup() error {
	prog := l.collection.Programs[bpf.LockProgLockEgress]
	pin := filepath.Join(l.pinDir, "egress")
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		if err := old.Update(prog); err != nil {
			_ = old.Close()
			return fmt.Errorf("update the pinned egress program: %w", err)
		}
		l.cgroupLink = old
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("adopt the pinned egress program %s: %w", pin, err)
	}
	made, err := link.AttachCgroup(link.CgroupOptions{
		Path: l.cgroupRoot, Attach: ebpf.AttachCGroupInetEgress,
		Program: prog,
	})
	if err != nil {
		return fmt.Errorf("attach the egress program to %s: %w: %s", l.cgroupRoot, ErrNotSupported, shortReason(err))
	}
	if err := made.Pin(pin); err != nil {
		_ = made.Close()
		return fmt.Errorf("pin the egress program: %w", err)
	}
	l.cgroupLink = made
	return nil
}

// lockID returns the key of a lease in the kernel maps.
func lockID(lease string) uint64 {
	sum := sha256.Sum256([]byte(lease))
	return binary.BigEndian.Uint64(sum[:])
}

// flags returns the flag bits of the lock's record.
func (r *EgressLockRequest) flags() uint32 {
	var flags uint32
	if r.HostNetwork {
		flags |= lockFlagHostNetwork
	}
	if len(r.AllowList) > 0 {
		flags |= lockFlagAllowList
	}
	if r.reachesOnlyViaNode() {
		flags |= lockFlagNodeMACsOnly
	}
	if r.AnswerRootSockets {
		flags |= lockFlagRootProbes
	}
	return flags
}

// validate returns an error if the request is invalid. It runs before anything is changed.
func (r *EgressLockRequest) validate() error {
	switch {
	case r.LeaseID == "" || len(r.LeaseID) >= len(lockRecord{}.Lease):
		return fmt.Errorf("apply the egress lock: the lease ID must be 1 to %d bytes long", len(lockRecord{}.Lease)-1)
	case len(r.TargetID) >= len(lockRecord{}.Target):
		return fmt.Errorf("apply the egress lock: the target must be at most %d bytes long", len(lockRecord{}.Target)-1)
	case len(r.Cgroups) == 0:
		return errors.New("apply the egress lock: missing cgroup")
	case !r.ExpiresAt.After(time.Now()):
		return fmt.Errorf("apply the egress lock: the expiry %s has passed", r.ExpiresAt.Format(time.RFC3339))
	case len(r.Cgroups) > 64 || len(r.Veths) > 64 || len(r.AllowList) > 4096:
		return errors.New("apply the egress lock: more than 64 cgroups, 64 veths or 4096 destinations")
	}
	for _, a := range r.AllowList {
		if !a.Prefix.IsValid() {
			return errors.New("apply the egress lock: an allowed destination has no prefix")
		}
		if a.Protocol != "" && a.Protocol != "tcp" && a.Protocol != "udp" {
			return fmt.Errorf("apply the egress lock: invalid protocol %q; use tcp or udp, or omit it", a.Protocol)
		}
	}
	return nil
}

// Apply locks the cgroups and veths of the request from now on. A second call for the same lease replaces the request
// (later or earlier end, other allow list) without a gap. A veth that cannot be locked, because its interface is gone
// or the kernel has no tcx, is not an error: EgressLockState.VethError says why. It returns ErrLockedByOtherLease if
// another lease locks one of the cgroups or veths.
func (l *EgressLock) Apply(r EgressLockRequest) (EgressLockState, error) {
	if err := r.validate(); err != nil {
		return EgressLockState{}, err
	}
	rootID, err := containermeta.CgroupID(l.cgroupRoot)
	if err != nil {
		return EgressLockState{}, err
	}
	if slices.Contains(r.Cgroups, rootID) {
		return EgressLockState{},
			errors.New("apply the egress lock: the root cgroup is not allowed, because it contains the entire node")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeExpired()

	id := lockID(r.LeaseID)
	if err := l.checkNotLocked(id, r); err != nil {
		return EgressLockState{}, err
	}
	end := sinceBoot() + time.Until(r.ExpiresAt)
	rec := lockRecord{Expiry: uint64(end), Flags: r.flags()}
	copy(rec.Lease[:], r.LeaseID)
	copy(rec.Target[:], r.TargetID)
	// Write the data that the programs read first, and the entries that activate the lock last.
	if err := l.writeDestinations(id, r); err != nil {
		return EgressLockState{}, err
	}
	if err := l.ebpfMap(bpf.LockMapCounts).Update(id, packetCountsRecord{}, ebpf.UpdateNoExist); err != nil &&
		!errors.Is(err, ebpf.ErrKeyExist) {
		return EgressLockState{}, fmt.Errorf("apply the egress lock: create its counters: %w", err)
	}
	if err := l.ebpfMap(bpf.LockMapLocks).Put(id, rec); err != nil {
		return EgressLockState{}, fmt.Errorf("write the egress lock: %w", err)
	}
	if err := l.extendLatestExpiry(rec.Expiry); err != nil {
		return EgressLockState{}, err
	}
	if err := l.activate(id, r); err != nil {
		return EgressLockState{}, err
	}
	problem := ""
	for _, w := range r.Veths {
		if err := l.attachVeth(w.Index); err != nil {
			problem = fmt.Sprintf("interface %s (%d): %s", w.Name, w.Index, shortReason(err))
			l.unlockObject(lockedObjectKey{ID: uint64(w.Index), Kind: objectVeth})
		}
	}
	st, err := l.stateByID(id)
	st.VethError = problem
	return st, err
}

// activate writes the cgroups and interfaces that a lock covers, and removes those that it no longer does.
func (l *EgressLock) activate(id uint64, r EgressLockRequest) error {
	wanted := map[lockedObjectKey]lockedObjectValue{}
	for _, cg := range r.Cgroups {
		wanted[lockedObjectKey{ID: cg, Kind: objectCgroup}] = lockedObjectValue{Lock: id}
	}
	for _, w := range r.Veths {
		wanted[lockedObjectKey{ID: uint64(w.Index), Kind: objectVeth}] = lockedObjectValue{
			Lock: id,
			MAC:  w.MAC,
		}
	}
	for k, v := range wanted {
		if err := l.ebpfMap(bpf.LockMapLockedObjects).Put(k, v); err != nil {
			l.removeLock(id)
			return fmt.Errorf("apply the egress lock: %w", err)
		}
	}
	for k, v := range l.lockedObjects() {
		_, keep := wanted[k]
		// A veth that still exists belongs to the pod, even if the pod hides its end of it.
		if v.Lock == id && !keep && (k.Kind != objectVeth || !l.isVethLocked(int(k.ID))) {
			l.unlockObject(k)
		}
	}
	return nil
}

// checkNotLocked returns an error if another lease locks a cgroup or veth of the request.
func (l *EgressLock) checkNotLocked(id uint64, r EgressLockRequest) error {
	held := func(k lockedObjectKey) error {
		var v lockedObjectValue
		if l.ebpfMap(bpf.LockMapLockedObjects).Lookup(k, &v) != nil || v.Lock == id {
			return nil
		}
		st, err := l.stateByID(v.Lock)
		if err != nil || !st.Active {
			return nil
		}
		return fmt.Errorf("%w: %s until %s", ErrLockedByOtherLease, st.LeaseID, st.ExpiresAt.Format(time.RFC3339))
	}
	for _, cg := range r.Cgroups {
		if err := held(lockedObjectKey{ID: cg, Kind: objectCgroup}); err != nil {
			return err
		}
	}
	for _, w := range r.Veths {
		if err := held(lockedObjectKey{ID: uint64(w.Index), Kind: objectVeth}); err != nil {
			return err
		}
	}
	return nil
}

// Release ends the lock of a lease now. It is not an error if the lease has no lock.
func (l *EgressLock) Release(lease string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeLock(lockID(lease))
	l.removeExpired()
	return l.recomputeLatestExpiry()
}

// Close closes the handles of this process. Locks stay in force.
func (l *EgressLock) Close() error {
	var errs []error
	if l.cgroupLink != nil {
		errs = append(errs, l.cgroupLink.Close())
	}
	if l.collection != nil {
		l.collection.Close()
	}
	if l.ownerFile != nil {
		errs = append(errs, l.ownerFile.Close())
	}
	return errors.Join(errs...)
}

func (l *EgressLock) ebpfMap(name string) *ebpf.Map { return l.collection.Maps[name] }
