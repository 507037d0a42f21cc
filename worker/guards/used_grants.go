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

	"github.com/google/renameio/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// UsedGrants remembers which grant was used for what: what people approved once is applied once. Whoever keeps a grant, or the
// votes that made it, applies nothing again with it.
type UsedGrants interface {
	// RecordUse records that a grant is used for a lease that ends then, and returns ErrGrantUsed if it was used for another
	// lease, or for one that has ended. An attempt of the same lease that is tried again may use it again.
	RecordUse(ctx context.Context, nonce string, use GrantUse, now time.Time) error
}

// GrantUse is what a grant was used for.
type GrantUse struct {
	LeaseID        string    `json:"lease"`
	LeaseExpiresAt time.Time `json:"until"`
	UsedAt         time.Time `json:"at"`
}

// ErrGrantUsed says that a grant was used before: people must be asked again.
var ErrGrantUsed = errors.New("the grant was used already")

// grantUseRetention is how long a use is remembered: longer than any grant is valid after the last of its votes.
const grantUseRetention = 2 * time.Hour

// addGrantUse returns the uses with this one in it, and without those that are too old to matter.
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
		return nil, fmt.Errorf("%w for lease %s, which ended at %s", ErrGrantUsed, before.LeaseID, before.LeaseExpiresAt.UTC().Format(time.RFC3339))
	}
	return out, nil
}

// FileUsedGrants keeps the uses in a file of one process.
type FileUsedGrants struct {
	FilePath string

	mu sync.Mutex
}

// SharedUsedGrants keeps the uses for all replicas in a ConfigMap, one key each.
type SharedUsedGrants struct {
	KubeClient kubernetes.Interface
	Namespace  string
}

var (
	_ UsedGrants = (*FileUsedGrants)(nil)
	_ UsedGrants = (*SharedUsedGrants)(nil)
)

// RecordUse records a use in the file. It is on disk before Use returns.
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
			return fmt.Errorf("read the used grants: %s is damaged: %w; remove it once no approval of the last two hours is open", g.FilePath, err)
		}
	}
	uses, err = addGrantUse(uses, nonce, use, now)
	if err != nil {
		return err
	}
	if raw, err = json.Marshal(uses); err != nil {
		return fmt.Errorf("write the used grants: %w", err)
	}
	if err := renameio.WriteFile(g.FilePath, raw, 0o600); err != nil {
		return fmt.Errorf("write the used grants: %w", err)
	}
	return nil
}

// grantsPatch makes a ConfigMap hold exactly these uses, if nobody changed it since it was read.
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
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": m.ResourceVersion}, "data": data})
	if err != nil {
		return nil, fmt.Errorf("encode the uses: %w", err)
	}
	return patch, nil
}

// UsedGrantsConfigMap is the ConfigMap of the used grants, in Stanch's own namespace. It is there from the start, so that the right
// to change this one object suffices.
const UsedGrantsConfigMap = "stanch-used-grants"

// RecordUse records a use in the ConfigMap. Two replicas cannot both be the first: the API server refuses the later write.
func (g *SharedUsedGrants) RecordUse(ctx context.Context, nonce string, use GrantUse, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	maps := g.KubeClient.CoreV1().ConfigMaps(g.Namespace)
	err := retry.OnError(retry.DefaultBackoff, apierrors.IsConflict, func() error {
		m, err := maps.Get(ctx, UsedGrantsConfigMap, metav1.GetOptions{})
		if err != nil {
			return err //nolint:wrapcheck // retried by its kind, wrapped below
		}
		uses := map[string]GrantUse{}
		for n, text := range m.Data {
			var u GrantUse
			if err := json.Unmarshal([]byte(text), &u); err != nil {
				u = GrantUse{LeaseID: "unknown", LeaseExpiresAt: now, UsedAt: now} // somebody changed it: it counts as used
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
		_, err = maps.Patch(ctx, UsedGrantsConfigMap, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "stanch"})
		return err //nolint:wrapcheck // retried by its kind, wrapped below
	})
	if err != nil && !errors.Is(err, ErrGrantUsed) {
		return fmt.Errorf("record the used grant in the ConfigMap %s/%s (`stanch manifests` creates it): %w", g.Namespace, UsedGrantsConfigMap, err)
	}
	return err //nolint:wrapcheck // it says what it was used for
}
