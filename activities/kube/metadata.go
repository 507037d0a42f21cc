package kube

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const mergePatchType = types.MergePatchType

// patchMetadata sets labels and annotations of the object with this UID only, and removes those with nil values. It
// does nothing if the object is gone.
func patchMetadata(ctx context.Context, patch func(context.Context, []byte, metav1.PatchOptions) error,
	uid, manager string, labels, annotations map[string]any,
) error {
	metadata := map[string]any{"uid": uid}
	if len(labels) > 0 {
		metadata["labels"] = labels
	}
	if len(annotations) > 0 {
		metadata["annotations"] = annotations
	}
	body, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	err = patch(ctx, body, metav1.PatchOptions{FieldManager: manager})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// metadataDifferences compares labels or annotations with the wanted entries.
func metadataDifferences(object string, o metav1.Object, manager, what string, have,
	want map[string]string,
) []Difference {
	var found []Difference
	for _, key := range slices.Sorted(maps.Keys(want)) {
		value, ok := have[key]
		if ok && value == want[key] {
			continue
		}
		if !ok {
			value = "absent"
		}
		by, when := lastFieldWriter(o, manager, "metadata", what+"s", key)
		if by == "" { // removed fields have no owner, so the last writer is the best guess
			by, when = lastWriter(o, manager)
		}
		found = append(found, Difference{
			Object: object, Field: what + " " + key, Want: want[key], Have: value, ChangedBy: by, ChangedAt: when,
		})
	}
	return found
}
