package kube

import (
	"context"
	"encoding/json"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// patchFunc sends a merge patch of one object.
type patchFunc func(context.Context, []byte, metav1.PatchOptions) error

// metadataPatch sets labels and annotations of the object with this UID only, and removes those with nil values.
type metadataPatch struct {
	uid, manager        string
	labels, annotations map[string]any
}

// send sends the patch. It does nothing if the object is gone.
func (p metadataPatch) send(ctx context.Context, patch patchFunc) error {
	metadata := map[string]any{"uid": p.uid}
	if len(p.labels) > 0 {
		metadata["labels"] = p.labels
	}
	if len(p.annotations) > 0 {
		metadata["annotations"] = p.annotations
	}
	body, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	err = patch(ctx, body, metav1.PatchOptions{FieldManager: p.manager})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
