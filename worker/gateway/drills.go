package gateway

import (
	"context"
	"crypto/subtle"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors"
	"stanch/sensors/duration"
	"stanch/sensors/containermeta"
	"stanch/sensors/attestation"
	"stanch/worker/config"
)

// Limits of drills.
const (
	drillRegistrationLife = 5 * time.Minute // from registration to the last detection that counts
	drillKeyLife          = time.Hour       // a drill answers and releases with its key
	maxDrills             = 100
	maxDrillTargets       = 10
	// drillClockSkew is how far the clocks of this process, a kernel and an API server may differ.
	drillClockSkew = 30 * time.Second
	drillLabel     = "stanch.dev/drill"
)

// DrillTargets is what a drill registers before its attack starts. Everything in it is checked against the kernel, the
// API server or IAM: it must have been created after the drill's key.
type DrillTargets struct {
	// Containers are empty cgroups on the gateway's own machine.
	Containers []DrillContainer `json:"containers,omitempty"`
	// Pods and Deployments are names in the namespace of drills.
	Pods        []string `json:"pods,omitempty"`
	Deployments []string `json:"deployments,omitempty"`
	// Roles are names of IAM roles that begin with "stanch-drill-". They exist before the drill, so an operator names them.
	Roles []string `json:"roles,omitempty"`
}

// DrillContainer is a container that a drill is about to start.
type DrillContainer struct {
	ID string `json:"id"`
	// CgroupPath is below the root of cgroup v2, and Cgroup its inode.
	CgroupPath string `json:"cgroup_path"`
	Cgroup     uint64 `json:"cgroup"`
}

// Drills issues keys for drills and registers their targets. The zero value registers nothing in a cluster.
// It is safe for concurrent use.
type Drills struct {
	Kube kubernetes.Interface // nil without a cluster
	// RoleID returns the RoleId of an IAM role; nil without an account.
	RoleID func(ctx context.Context, name string) (string, error)

	mu   sync.Mutex
	keys map[string]*drillKey // by secret
}

type drillKey struct {
	name         string
	issued       time.Time
	registration *attestation.DrillRegistration // nil until the targets are registered, which happens once
	pending      bool
}

// Issue returns a new drill's secret key.
func (d *Drills) Issue(name string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keys == nil {
		d.keys = map[string]*drillKey{}
	}
	for secret, k := range d.keys {
		if time.Since(k.issued) > drillKeyLife {
			delete(d.keys, secret)
		}
	}
	if len(d.keys) >= maxDrills {
		return "", &problem{429, fmt.Sprintf("start drill: %d drills were started within %s; wait until their keys expire", maxDrills, duration.Format(drillKeyLife))}
	}
	secret := uuid.NewString()
	d.keys[secret] = &drillKey{name: name, issued: time.Now()}
	return secret, nil
}

// find returns the key with this secret, or nil. The caller holds the lock.
func (d *Drills) find(secret string) *drillKey {
	for known, k := range d.keys {
		if subtle.ConstantTimeCompare([]byte(known), []byte(secret)) == 1 && time.Since(k.issued) <= drillKeyLife {
			return k
		}
	}
	return nil
}

// NameOf returns the name of the drill whose key this is.
func (d *Drills) NameOf(secret string) (string, bool) {
	if d == nil {
		return "", false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.find(secret)
	if k == nil {
		return "", false
	}
	return k.name, true
}

// Register puts targets into the scope of the drill with this key: once, and for five minutes.
func (d *Drills) Register(ctx context.Context, secret string, targets DrillTargets) (*attestation.DrillRegistration, error) {
	k, issued, err := d.reserve(secret, targets)
	if err != nil {
		return nil, err
	}
	registered, err := d.verify(ctx, targets, issued)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		k.pending = false
		return nil, err
	}
	now := time.Now()
	k.registration = &attestation.DrillRegistration{Name: k.name, Targets: registered, RegisteredAt: now, ExpiresAt: now.Add(drillRegistrationLife)}
	return k.registration, nil
}

// reserve makes sure that a key registers once, also when two requests come at the same time.
func (d *Drills) reserve(secret string, targets DrillTargets) (*drillKey, time.Time, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.find(secret)
	switch n := len(targets.Containers) + len(targets.Pods) + len(targets.Deployments) + len(targets.Roles); {
	case k == nil:
		return nil, time.Time{}, deny("register drill targets: the drill's key is unknown or expired; start the drill again")
	case k.pending:
		return nil, time.Time{}, deny("register drill targets: this drill registered its targets already; start another drill")
	case time.Since(k.issued) > drillRegistrationLife:
		return nil, time.Time{}, deny("register drill targets: the key is older than %s; start the drill again", duration.Format(drillRegistrationLife))
	case n == 0 || n > maxDrillTargets:
		return nil, time.Time{}, &problem{400, fmt.Sprintf("register drill targets: %d targets are not allowed; name 1 to %d", n, maxDrillTargets)}
	}
	k.pending = true
	return k, k.issued, nil
}

func (d *Drills) verify(ctx context.Context, targets DrillTargets, issued time.Time) ([]attestation.DrillTarget, error) {
	var out []attestation.DrillTarget
	for _, c := range targets.Containers {
		if err := verifyContainer(c, issued); err != nil {
			return nil, err
		}
		out = append(out, attestation.DrillTarget{ID: "container:" + c.ID, CgroupID: c.Cgroup})
	}
	for _, name := range targets.Pods {
		id, err := d.verifyObject(ctx, "pod", name, issued)
		if err != nil {
			return nil, err
		}
		out = append(out, attestation.DrillTarget{ID: id})
	}
	for _, name := range targets.Deployments {
		id, err := d.verifyObject(ctx, "workload", name, issued)
		if err != nil {
			return nil, err
		}
		out = append(out, attestation.DrillTarget{ID: id})
	}
	for _, name := range targets.Roles {
		if d.RoleID == nil || !strings.HasPrefix(name, config.DrillRole) {
			return nil, deny("register drill role %q: not allowed; its name must begin with %q, and `aws:` must be configured", clip(name), config.DrillRole)
		}
		id, err := d.RoleID(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("register drill role %q: %w", clip(name), err)
		}
		out = append(out, attestation.DrillTarget{ID: "role:" + id})
	}
	return out, nil
}

var (
	drillContainerID = regexp.MustCompile(`^[0-9a-f]{64}$`)
	drillCgroupPath  = regexp.MustCompile(`^/stanch-drill-[0-9a-z]{1,32}/[0-9a-f]{64}$`)
)

// verifyContainer checks that a cgroup of this machine is empty and newer than the drill's key: what runs already, or holds
// processes of others, is never a drill's. It lies below the root of the tree, where only root creates cgroups.
func verifyContainer(c DrillContainer, issued time.Time) error {
	if !drillContainerID.MatchString(c.ID) || !drillCgroupPath.MatchString(c.CgroupPath) || filepath.Base(c.CgroupPath) != c.ID {
		return &problem{400, fmt.Sprintf("register drill container %q: invalid id or cgroup path %q", clip(c.ID), clip(c.CgroupPath))}
	}
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		return fmt.Errorf("register drill container: %w", err)
	}
	dir := filepath.Join(root, c.CgroupPath)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return deny("register drill container: cgroup %s is not on this machine (%v); run the drill where Stanch runs", c.CgroupPath, err)
	}
	pids, err := containermeta.ListPIDs(dir)
	switch created := time.Unix(st.Mtim.Unix()); {
	case err != nil:
		return fmt.Errorf("register drill container: %w", err)
	case st.Ino != c.Cgroup:
		return deny("register drill container: cgroup %s has the inode %d, not %d", c.CgroupPath, st.Ino, c.Cgroup)
	case len(pids) > 0:
		return deny("register drill container: cgroup %s holds %d processes already; a drill registers an empty one", c.CgroupPath, len(pids))
	case created.Before(issued.Add(-time.Second)):
		return deny("register drill container: cgroup %s existed before the drill", c.CgroupPath)
	}
	return nil
}

// verifyObject checks that a pod or a Deployment was created by a drill after its key was issued, and returns its id.
func (d *Drills) verifyObject(ctx context.Context, kind, name string, issued time.Time) (string, error) {
	if d.Kube == nil {
		return "", deny("register drill %s %q: no cluster is connected", kind, clip(name))
	}
	var meta metav1.ObjectMeta
	if kind == "pod" {
		got, err := d.Kube.CoreV1().Pods(config.DrillNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("register drill pod %q: %w", clip(name), err)
		}
		meta = got.ObjectMeta
	} else {
		got, err := d.Kube.AppsV1().Deployments(config.DrillNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("register drill Deployment %q: %w", clip(name), err)
		}
		meta = got.ObjectMeta
	}
	switch {
	case meta.Labels[drillLabel] == "":
		return "", deny("register drill %s %q: it has no label %s", kind, clip(name), drillLabel)
	case meta.CreationTimestamp.Time.Before(issued.Add(-drillClockSkew)):
		return "", deny("register drill %s %q: it existed before the drill", kind, clip(name))
	}
	return kind + ":" + string(meta.UID), nil
}

// Of returns the registration that covers a detection's target, or nil. A container must be in the very cgroup that was
// registered: its id, its path and its namespace are anybody's to choose.
func (d *Drills) Of(x sensors.Detection, target string) *attestation.DrillRegistration {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.keys {
		t, ok := k.registration.FindTarget(target)
		if !ok || time.Now().After(k.registration.ExpiresAt) {
			continue
		}
		if t.CgroupID != 0 && t.CgroupID != x.Event.Container.CgroupID {
			continue
		}
		return k.registration
	}
	return nil
}
