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
	"stanch/sensors/identity"
)

// Lock is this node's egress lock: it outlives the process that applied it, and ends by itself.
// Its methods may be called from several goroutines.
type Lock struct {
	mu   sync.Mutex
	dir  string   // where this layout is pinned
	root string   // of cgroup v2
	own  *os.File // the right to change what is pinned
	coll *ebpf.Collection
	held link.Link // the cgroup program
}

// The structures of bpf/src/lock.bpf.c, written and read by encoding/binary: no padding is hidden.
type (
	lockRecord struct {
		Expiry uint64
		Flags  uint32
		_      uint32
		Lease  [160]byte
		Target [272]byte
	}
	countsRecord struct {
		Denied   [5]uint64
		Answered uint64
		Asked    uint64
	}
	holdKey struct {
		ID   uint64
		Kind uint32
		_    uint32
	}
	holdValue struct {
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
	holdCgroup, holdWire = 0, 1
	roleNode, rolePod    = 0, 1
	lockHostNetwork      = 1
	lockAllowList        = 2
	lockByNode           = 4
	lockRootProbes       = 8
)

var deniedKinds = []string{"tcp", "udp", "icmp", "arp", "other"}

// OpenLock loads the lock's programs, or adopts those pinned under dir by an earlier process. Empty dir means
// DefaultLockDir; it is made and the BPF file system mounted where they lack. While another process has it open it gives
// ErrInUse.
func OpenLock(dir string) (*Lock, error) {
	if dir == "" {
		dir = DefaultLockDir
	}
	root, err := identity.FindCgroupRoot()
	if err != nil {
		return nil, err
	}
	l := &Lock{dir: filepath.Join(dir, lockLayout), root: root}
	if err := l.open(dir); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Lock) open(dir string) error {
	if err := mountBPF(dir); err != nil {
		return err
	}
	var err error
	if l.own, err = own(dir, handover); errors.Is(err, ErrInUse) {
		return fmt.Errorf("open the egress lock: %w%s", err, inUseRemedy)
	} else if err != nil {
		return fmt.Errorf("open the egress lock: %w", err)
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("make the lock's directory: %w", err)
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
	l.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: l.dir}})
	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return fmt.Errorf("adopt the lock pinned in %s (another version made it: let its locks end, then run `stanch-sensor disarm`): %w", l.dir, err)
	case err != nil:
		return fmt.Errorf("load the egress lock: %w: %s", ErrNotSupported, why(err))
	}
	if err := l.attachCgroup(); err != nil {
		return err
	}
	return l.adoptWires()
}

// attachCgroup attaches the cgroup program, or puts it into the pinned link in place of an older one without a gap.
func (l *Lock) attachCgroup() error {
	prog := l.coll.Programs[bpf.LockProgLockEgress]
	pin := filepath.Join(l.dir, "egress")
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		if err := old.Update(prog); err != nil {
			_ = old.Close()
			return fmt.Errorf("renew the pinned egress program: %w", err)
		}
		l.held = old
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("adopt the pinned egress program %s: %w", pin, err)
	}
	made, err := link.AttachCgroup(link.CgroupOptions{Path: l.root, Attach: ebpf.AttachCGroupInetEgress, Program: prog})
	if err != nil {
		return fmt.Errorf("attach the egress program to %s: %w: %s", l.root, ErrNotSupported, why(err))
	}
	if err := made.Pin(pin); err != nil {
		_ = made.Close()
		return fmt.Errorf("pin the egress program: %w", err)
	}
	l.held = made
	return nil
}

// lockID is the key of a lease in the kernel's maps.
func lockID(lease string) uint64 {
	sum := sha256.Sum256([]byte(lease))
	return binary.BigEndian.Uint64(sum[:])
}

// flags are the bits of a lock's record.
func (r *LockRequest) flags() uint32 {
	var flags uint32
	if r.HostNetwork {
		flags |= lockHostNetwork
	}
	if len(r.Allow) > 0 {
		flags |= lockAllowList
	}
	if r.byNode() {
		flags |= lockByNode
	}
	if r.RootProbes {
		flags |= lockRootProbes
	}
	return flags
}

// check says what is wrong with a request before anything is touched.
func (r *LockRequest) check() error {
	switch {
	case r.Lease == "" || len(r.Lease) >= len(lockRecord{}.Lease):
		return fmt.Errorf("egress lock: a lease id of 1 to %d bytes is needed", len(lockRecord{}.Lease)-1)
	case len(r.Target) >= len(lockRecord{}.Target):
		return fmt.Errorf("egress lock: a target of at most %d bytes is needed", len(lockRecord{}.Target)-1)
	case len(r.Cgroups) == 0:
		return errors.New("egress lock: no cgroup to hold")
	case !r.Until.After(time.Now()):
		return fmt.Errorf("egress lock: the end %s has passed", r.Until.Format(time.RFC3339))
	case len(r.Cgroups) > 64 || len(r.Wires) > 64 || len(r.Allow) > 4096:
		return errors.New("egress lock: more than 64 cgroups, 64 wires or 4096 destinations")
	}
	for _, a := range r.Allow {
		if !a.Prefix.IsValid() {
			return errors.New("egress lock: an allowed destination has no prefix")
		}
		if a.Protocol != "" && a.Protocol != "tcp" && a.Protocol != "udp" {
			return fmt.Errorf("egress lock: protocol %q: use tcp, udp or leave it out", a.Protocol)
		}
	}
	return nil
}

// Apply holds the request's cgroups and wires from now on. Applying again with the same lease replaces the
// request (extends, shortens, other allow list) without a gap. A wire that cannot be held (its interface went away, the
// kernel has no tcx) is no error: LockState.Wire is false then and WireProblem says why.
func (l *Lock) Apply(r LockRequest) (LockState, error) {
	if err := r.check(); err != nil {
		return LockState{}, err
	}
	rootID, err := identity.CgroupID(l.root)
	if err != nil {
		return LockState{}, err
	}
	if slices.Contains(r.Cgroups, rootID) {
		return LockState{}, errors.New("egress lock: the root cgroup is the whole node")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep()

	id := lockID(r.Lease)
	if err := l.free(id, r); err != nil {
		return LockState{}, err
	}
	end := bootNow() + time.Until(r.Until)
	rec := lockRecord{Expiry: uint64(end), Flags: r.flags()} //nolint:gosec // in the future
	copy(rec.Lease[:], r.Lease)
	copy(rec.Target[:], r.Target)
	// What the programs lean on comes first, what makes them hold last.
	if err := l.destinations(id, r); err != nil {
		return LockState{}, err
	}
	if err := l.m(bpf.LockMapCounts).Update(id, countsRecord{}, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return LockState{}, fmt.Errorf("egress lock: make counters: %w", err)
	}
	if err := l.m(bpf.LockMapLocks).Put(id, rec); err != nil {
		return LockState{}, fmt.Errorf("egress lock: write: %w", err)
	}
	if err := l.raise(rec.Expiry); err != nil {
		return LockState{}, err
	}
	wanted := map[holdKey]holdValue{}
	for _, cg := range r.Cgroups {
		wanted[holdKey{ID: cg, Kind: holdCgroup}] = holdValue{Lock: id}
	}
	for _, w := range r.Wires {
		wanted[holdKey{ID: uint64(w.Index), Kind: holdWire}] = holdValue{Lock: id, MAC: w.MAC} //nolint:gosec // an index
	}
	for k, v := range wanted {
		if err := l.m(bpf.LockMapHolds).Put(k, v); err != nil {
			l.drop(id)
			return LockState{}, fmt.Errorf("egress lock: hold: %w", err)
		}
	}
	for k, v := range l.holds() {
		_, keep := wanted[k]
		// A wire that is still there is still the pod's, also where it hides its own end.
		if v.Lock == id && !keep && (k.Kind != holdWire || !l.wireHeld(int(k.ID))) { //nolint:gosec // an index
			l.unhold(k)
		}
	}
	problem := ""
	for _, w := range r.Wires {
		if err := l.attachWire(w.Index); err != nil {
			problem = fmt.Sprintf("interface %s (%d): %s", w.Name, w.Index, why(err))
			l.unhold(holdKey{ID: uint64(w.Index), Kind: holdWire}) //nolint:gosec // an index
		}
	}
	st, err := l.state(id)
	st.WireProblem = problem
	return st, err
}

// free says whether another lease holds what a request wants.
func (l *Lock) free(id uint64, r LockRequest) error {
	held := func(k holdKey) error {
		var v holdValue
		if l.m(bpf.LockMapHolds).Lookup(k, &v) != nil || v.Lock == id {
			return nil
		}
		st, err := l.state(v.Lock)
		if err != nil || !st.Held {
			return nil
		}
		return fmt.Errorf("%w: %s until %s", ErrHeld, st.Lease, st.Until.Format(time.RFC3339))
	}
	for _, cg := range r.Cgroups {
		if err := held(holdKey{ID: cg, Kind: holdCgroup}); err != nil {
			return err
		}
	}
	for _, w := range r.Wires {
		if err := held(holdKey{ID: uint64(w.Index), Kind: holdWire}); err != nil { //nolint:gosec // an index
			return err
		}
	}
	return nil
}

// Release ends the lock of a lease now. Releasing what is not held is no error.
func (l *Lock) Release(lease string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(lockID(lease))
	l.sweep()
	return l.settle()
}

// Close lets go of this process's handles. Locks stay in force.
func (l *Lock) Close() error {
	var errs []error
	if l.held != nil {
		errs = append(errs, l.held.Close())
	}
	if l.coll != nil {
		l.coll.Close()
	}
	if l.own != nil {
		errs = append(errs, l.own.Close())
	}
	return errors.Join(errs...)
}

func (l *Lock) m(name string) *ebpf.Map { return l.coll.Maps[name] }
