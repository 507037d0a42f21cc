// Package drills knows which drills run: it issues their keys and registers their targets, so that a drill runs in a
// scope of its own. It refuses targets that existed before the drill, and contains nothing.
package drills

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
	"stanch/sensors/attestation"
	"stanch/sensors/containermeta"
	"stanch/sensors/duration"
	"stanch/sensors/truncate"
	"stanch/worker/config"
	"stanch/worker/httpserver"
)

// Limits of drills.
const (
	drillRegistrationLifetime = 5 * time.Minute // from registration to the last detection that counts
	drillKeyLifetime          = time.Hour       // a drill answers and releases with its key
	maxDrills                 = 100
	maxDrillTargets           = 10
	// drillClockSkew is how far the clocks of this process, a kernel and an API server may differ.
	drillClockSkew = 30 * time.Second
	drillLabel     = "stanch.dev/drill"
)

// Targets are the targets that a drill registers before its attack starts. They are checked against the kernel,
// the API server or IAM: each must have been created after the drill's key.
type Targets struct {
	// Containers are empty cgroups on the gateway's own machine.
	Containers []Container `json:"containers,omitempty"`
	// Pods and Deployments are names in the namespace of drills.
	Pods        []string `json:"pods,omitempty"`
	Deployments []string `json:"deployments,omitempty"`
	// Roles are names of IAM roles with the prefix "stanch-drill-". They exist before the drill, so an operator names
	// them.
	Roles []string `json:"roles,omitempty"`
}

// Container is a container that a drill is about to start.
type Container struct {
	ID string `json:"id"`
	// CgroupPath is below the root of cgroup v2, and Cgroup its inode.
	CgroupPath string `json:"cgroup_path"`
	CgroupID   uint64 `json:"cgroup_id"`
}

// MaxPhase is the phase of drills, unless the installation's permissions are those of a lower one: a drill affects only
// the targets that it created.
const MaxPhase = 3

// Registry issues keys for drills and registers their targets. The zero value registers nothing in a cluster.
// It is safe for concurrent use.
type Registry struct {
	Kube kubernetes.Interface // nil without a cluster
	// RoleID returns the RoleId of an IAM role; nil without an account.
	RoleID func(ctx context.Context, name string) (string, error)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Phase is the phase of drills; 0 means MaxPhase.
	Phase int

	mu   sync.Mutex
	keys map[string]*drillKey // by secret
}

// CurrentPhase returns the phase of drills.
func (d *Registry) CurrentPhase() int {
	if d == nil || d.Phase == 0 {
		return MaxPhase
	}
	return d.Phase
}

func (d *Registry) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

type drillKey struct {
	name         string
	issuedAt     time.Time
	registration *attestation.DrillRegistration // nil until the targets are registered, which happens once
	registering  bool
}

// Key is a drill's secret key, and the phase of the drill.
type Key struct {
	Key   string `json:"key"`
	Phase int    `json:"phase"`
}

// IssueKey returns a new drill's secret key.
func (d *Registry) IssueKey(name string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keys == nil {
		d.keys = map[string]*drillKey{}
	}
	for secret, k := range d.keys {
		if d.now().Sub(k.issuedAt) > drillKeyLifetime {
			delete(d.keys, secret)
		}
	}
	if len(d.keys) >= maxDrills {
		return "", httpserver.TooManyRequests("start drill: %d drills were started within %s; wait until their keys expire",
			maxDrills, duration.Format(drillKeyLifetime))
	}
	secret := uuid.NewString()
	d.keys[secret] = &drillKey{name: name, issuedAt: d.now()}
	return secret, nil
}

// findKey returns the key with this secret, or nil. The caller holds the lock.
func (d *Registry) findKey(secret string) *drillKey {
	for known, k := range d.keys {
		if subtle.ConstantTimeCompare([]byte(known), []byte(secret)) == 1 && d.now().Sub(k.issuedAt) <= drillKeyLifetime {
			return k
		}
	}
	return nil
}

// NameForKey returns the name of the drill whose key this is.
func (d *Registry) NameForKey(secret string) (string, bool) {
	if d == nil {
		return "", false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.findKey(secret)
	if k == nil {
		return "", false
	}
	return k.name, true
}

// Register adds targets to the scope of the drill with this key: once, and for five minutes.
func (d *Registry) Register(ctx context.Context, secret string,
	targets Targets,
) (*attestation.DrillRegistration, error) {
	k, issued, err := d.reserveRegistration(secret, targets)
	if err != nil {
		return nil, err
	}
	registered, err := d.verifyTargets(ctx, targets, issued)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		k.registering = false
		return nil, err
	}
	now := d.now()
	k.registration = &attestation.DrillRegistration{
		Name: k.name, Targets: registered, RegisteredAt: now,
		ExpiresAt: now.Add(drillRegistrationLifetime),
	}
	return k.registration, nil
}

// reserveRegistration ensures that a key registers once, even with two requests at the same time.
func (d *Registry) reserveRegistration(secret string, targets Targets) (*drillKey, time.Time, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.findKey(secret)
	switch n := len(targets.Containers) + len(targets.Pods) + len(targets.Deployments) + len(targets.Roles); {
	case k == nil:
		return nil, time.Time{}, httpserver.Forbidden(
			"register drill targets: the drill's key is unknown or expired; start the drill again",
		)
	case k.registering:
		return nil, time.Time{}, httpserver.Forbidden(
			"register drill targets: this drill has already registered its targets; start another drill",
		)
	case d.now().Sub(k.issuedAt) > drillRegistrationLifetime:
		return nil, time.Time{}, httpserver.Forbidden("register drill targets: the key is older than %s; start the drill again",
			duration.Format(drillRegistrationLifetime))
	case n == 0 || n > maxDrillTargets:
		return nil, time.Time{}, httpserver.BadRequest("register drill targets: %d targets are not allowed; name 1 to %d", n, maxDrillTargets)
	}
	k.registering = true
	return k, k.issuedAt, nil
}

func (d *Registry) verifyTargets(ctx context.Context, targets Targets,
	issued time.Time,
) ([]attestation.DrillTarget, error) {
	var out []attestation.DrillTarget
	for _, c := range targets.Containers {
		if err := verifyContainer(c, issued); err != nil {
			return nil, err
		}
		out = append(out, attestation.DrillTarget{ID: "container:" + c.ID, CgroupID: c.CgroupID})
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
		if d.RoleID == nil || !strings.HasPrefix(name, config.DrillRolePrefix) {
			return nil, httpserver.Forbidden(
				"register drill role %q: not allowed; its name must begin with %q, and `aws:` must be configured",
				truncate.Name(name),
				config.DrillRolePrefix,
			)
		}
		id, err := d.RoleID(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("register drill role %q: %w", truncate.Name(name), err)
		}
		out = append(out, attestation.DrillTarget{ID: "role:" + id})
	}
	return out, nil
}

var (
	drillContainerIDPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	drillCgroupPathPattern  = regexp.MustCompile(`^/stanch-drill-[0-9a-z]{1,32}/[0-9a-f]{64}$`)
)

// verifyContainer checks that a cgroup of this machine is empty and newer than the drill's key: a running container, or
// one with other processes, is never a drill's. It must be below the root of the tree, where only root creates cgroups.
func verifyContainer(c Container, issued time.Time) error {
	if !drillContainerIDPattern.MatchString(c.ID) || !drillCgroupPathPattern.MatchString(c.CgroupPath) ||
		filepath.Base(c.CgroupPath) != c.ID {
		return httpserver.BadRequest("register drill container %q: invalid id or cgroup path %q", truncate.Name(c.ID),
			truncate.Name(c.CgroupPath))
	}
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		return fmt.Errorf("register drill container: %w", err)
	}
	dir := filepath.Join(root, c.CgroupPath)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return httpserver.Forbidden("register drill container: cgroup %s is not on this machine (%v); run the drill where Stanch runs",
			c.CgroupPath, err)
	}
	pids, err := containermeta.ListPIDs(dir)
	switch created := time.Unix(st.Mtim.Unix()); {
	case err != nil:
		return fmt.Errorf("register drill container: %w", err)
	case st.Ino != c.CgroupID:
		return httpserver.Forbidden("register drill container: cgroup %s has inode %d, not %d", c.CgroupPath, st.Ino, c.CgroupID)
	case len(pids) > 0:
		return httpserver.Forbidden("register drill container: cgroup %s already has %d processes; a drill registers an empty one",
			c.CgroupPath, len(pids))
	case created.Before(issued.Add(-time.Second)):
		return httpserver.Forbidden("register drill container: cgroup %s existed before the drill", c.CgroupPath)
	}
	return nil
}

// verifyObject checks that a pod or a Deployment was created by a drill after its key was issued, and returns its id.
func (d *Registry) verifyObject(ctx context.Context, kind, name string, issued time.Time) (string, error) {
	if d.Kube == nil {
		return "", httpserver.Forbidden("register drill %s %q: no cluster is connected", kind, truncate.Name(name))
	}
	var meta metav1.ObjectMeta
	if kind == "pod" {
		got, err := d.Kube.CoreV1().Pods(config.DrillNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("register drill pod %q: %w", truncate.Name(name), err)
		}
		meta = got.ObjectMeta
	} else {
		got, err := d.Kube.AppsV1().Deployments(config.DrillNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("register drill Deployment %q: %w", truncate.Name(name), err)
		}
		meta = got.ObjectMeta
	}
	switch {
	case meta.Labels[drillLabel] == "":
		return "", httpserver.Forbidden("register drill %s %q: it has no label %s", kind, truncate.Name(name), drillLabel)
	case meta.CreationTimestamp.Time.Before(issued.Add(-drillClockSkew)):
		return "", httpserver.Forbidden("register drill %s %q: it existed before the drill", kind, truncate.Name(name))
	}
	return kind + ":" + string(meta.UID), nil
}

// RegistrationFor returns the registration that covers a detection's target, or nil. A container must be in exactly the
// registered cgroup, because anybody can choose its id, its path and its namespace.
func (d *Registry) RegistrationFor(x sensors.Detection, target string) *attestation.DrillRegistration {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.keys {
		t, ok := k.registration.FindTarget(target)
		if !ok || d.now().After(k.registration.ExpiresAt) {
			continue
		}
		if t.CgroupID != 0 && t.CgroupID != x.Event.Container.CgroupID {
			continue
		}
		return k.registration
	}
	return nil
}
