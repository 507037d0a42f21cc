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

// patchMetadata sets and, for nil values, removes labels and annotations of the object with this UID and of no
// other. An object that is gone needs nothing.
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

// metadataDifferences compares the entries that are wanted of a map of labels or annotations with what is there.
func metadataDifferences(object string, o metav1.Object, manager, what string, have, want map[string]string) []Difference {
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
		if by == "" { // nobody owns what was removed: whoever wrote the object last is the best guess
			by, when = lastWriter(o, manager)
		}
		found = append(found, Difference{
			Object: object, Field: what + " " + key, Want: want[key], Have: value, ChangedBy: by, ChangedAt: when,
		})
	}
	return found
}
