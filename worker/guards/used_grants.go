package guards

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"stanch/sensors/durablefile"
)

// UsedGrants records what each grant was used for: an approval is applied once. A copy of a grant, or of its votes,
// cannot be used to apply something again. Implementations are safe for concurrent use.
type UsedGrants interface {
	// RecordUse records that a grant is used for a lease with an end. It returns ErrGrantUsed if the grant was used for
	// another lease, or for one that has ended. A retry for the same lease may use it again.
	RecordUse(ctx context.Context, nonce string, use GrantUse, now time.Time) error
}

// GrantUse is what a grant was used for.
type GrantUse struct {
	LeaseID        string    `json:"lease"`
	LeaseExpiresAt time.Time `json:"until"`
	UsedAt         time.Time `json:"at"`
}

// ErrGrantUsed means that the grant was used before: a new approval is required.
var ErrGrantUsed = errors.New("the grant was already used")

// grantUseRetention is how long a use is stored: longer than any grant is valid after the last of its votes.
const grantUseRetention = 2 * time.Hour

// addGrantUse returns the uses with this one added, and without expired ones.
func addGrantUse(uses map[string]GrantUse, nonce string, use GrantUse, now time.Time) (map[string]GrantUse, error) {
	out := map[string]GrantUse{}
	for n, u := range uses {
		if now.Sub(u.UsedAt) < grantUseRetention || now.Before(u.LeaseExpiresAt) {
			out[n] = u
		}
	}
	before, used := out[nonce]
	switch {
	case !used:
		use.UsedAt = now
		out[nonce] = use
	case before.LeaseID != use.LeaseID:
		return nil, fmt.Errorf("%w for lease %s", ErrGrantUsed, before.LeaseID)
	case now.After(before.LeaseExpiresAt):
		return nil, fmt.Errorf("%w for lease %s, which ended at %s", ErrGrantUsed, before.LeaseID,
			before.LeaseExpiresAt.UTC().Format(time.RFC3339))
	}
	return out, nil
}

// FileUsedGrants stores the uses in a file of one process.
type FileUsedGrants struct {
	FilePath string

	mu sync.Mutex
}

// SharedUsedGrants stores the uses of all replicas in a ConfigMap, one key each.
type SharedUsedGrants struct {
	KubeClient kubernetes.Interface
	Namespace  string
}

var (
	_ UsedGrants = (*FileUsedGrants)(nil)
	_ UsedGrants = (*SharedUsedGrants)(nil)
)

// RecordUse records a use in the file, and syncs it to disk before it returns.
func (g *FileUsedGrants) RecordUse(_ context.Context, nonce string, use GrantUse, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	uses := map[string]GrantUse{}
	raw, err := os.ReadFile(g.FilePath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("read the used grants: %w", err)
	default:
		if err := json.Unmarshal(raw, &uses); err != nil {
			return fmt.Errorf(
				"read the used grants: %s is corrupted: %w; remove it once no approval from the last two hours is pending",
				g.FilePath,
				err,
			)
		}
	}
	uses, err = addGrantUse(uses, nonce, use, now)
	if err != nil {
		return err
	}
	if raw, err = json.Marshal(uses); err != nil {
		return fmt.Errorf("write the used grants: %w", err)
	}
	if err := durablefile.Write(g.FilePath, raw, 0o600); err != nil {
		return fmt.Errorf("write the used grants: %w", err)
	}
	return nil
}

// grantsPatch returns a patch that sets exactly these uses, if nobody changed the ConfigMap since it was read.
func grantsPatch(m *corev1.ConfigMap, uses map[string]GrantUse) ([]byte, error) {
	data := map[string]any{}
	for n := range m.Data {
		data[n] = nil
	}
	for n, u := range uses {
		raw, err := json.Marshal(u)
		if err != nil {
			return nil, fmt.Errorf("encode a use: %w", err)
		}
		data[n] = string(raw)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": m.ResourceVersion},
		"data":     data,
	})
	if err != nil {
		return nil, fmt.Errorf("encode the uses: %w", err)
	}
	return patch, nil
}

// UsedGrantsConfigMap is the ConfigMap of the used grants, in Stanch's own namespace. It is part of the installation,
// so that Stanch needs permission to change this one object only.
const UsedGrantsConfigMap = "stanch-used-grants"

// RecordUse records a use in the ConfigMap. If two replicas use a grant at the same time, the API server refuses the
// later write.
func (g *SharedUsedGrants) RecordUse(ctx context.Context, nonce string, use GrantUse, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	maps := g.KubeClient.CoreV1().ConfigMaps(g.Namespace)
	err := retry.OnError(retry.DefaultBackoff, apierrors.IsConflict, func() error {
		m, err := maps.Get(ctx, UsedGrantsConfigMap, metav1.GetOptions{})
		if err != nil {
			return err //nolint:wrapcheck // retried by its type, wrapped below
		}
		uses := map[string]GrantUse{}
		for n, text := range m.Data {
			var u GrantUse
			if err := json.Unmarshal([]byte(text), &u); err != nil {
				// someone changed the entry: it counts as used
				u = GrantUse{LeaseID: "unknown", LeaseExpiresAt: now, UsedAt: now}
			}
			uses[n] = u
		}
		if uses, err = addGrantUse(uses, nonce, use, now); err != nil {
			return err
		}
		patch, err := grantsPatch(m, uses)
		if err != nil {
			return err
		}
		_, err = maps.Patch(ctx, UsedGrantsConfigMap, types.MergePatchType, patch,
			metav1.PatchOptions{FieldManager: "stanch"})
		return err //nolint:wrapcheck // retried by its type, wrapped below
	})
	if err != nil && !errors.Is(err, ErrGrantUsed) {
		return fmt.Errorf("record the used grant in the ConfigMap %s/%s (`stanch manifests` creates it): %w", g.Namespace,
			UsedGrantsConfigMap, err)
	}
	return err //nolint:wrapcheck // the error names the use
}
