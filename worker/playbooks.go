package worker

import (
	"context"
	"net/http"
	"time"

	"stanch/activities"
	"stanch/worker/actions"
	"stanch/worker/guards"
	"stanch/worker/health"
	"stanch/worker/permissions"
	"stanch/worker/playbookstore"
)

// handleListPlaybooks handles the route that lists this worker's playbooks and, with ?incident=ID, their role in an
// incident.
func (w *Worker) handleListPlaybooks(r *http.Request) (any, error) {
	id := r.URL.Query().Get("incident")
	if id == "" {
		return playbookstore.List(w.Library.Programs(), nil), nil
	}
	in, err := w.Queries.Incident(r.Context(), id)
	if err != nil {
		return nil, err //nolint:wrapcheck // the error names the incident and has the status
	}
	return playbookstore.List(w.Library.Programs(), &in), nil
}

// handleComparePermissions handles the route that compares this worker's permissions in the cluster with those that its
// playbooks need in its phase.
func (w *Worker) handleComparePermissions(r *http.Request) (any, error) {
	return permissions.Compare(r.Context(), w.KubeClient, permissions.Scope{ //nolint:wrapcheck // says what it asked for
		Catalog: actions.Catalog(), Phase: w.Config.Phase, InUse: w.Library.ActionsInUse(), Namespace: w.Namespace,
		StateConfigMaps: []string{
			guards.KillSwitchConfigMap, guards.UsedGrantsConfigMap, health.NodeRegistryConfigMap,
		},
	})
}

// readRoutes returns the read-only routes of the API besides those of the gateway.
func (w *Worker) readRoutes(audit map[string]func(*http.Request) (any, error)) map[string]func(*http.Request) (any,
	error) {
	audit["/v1/playbooks"] = w.handleListPlaybooks
	audit["/v1/permissions"] = w.handleComparePermissions
	return audit
}

// lazyManifestReader reads the worker's evidence store, which is created after the actions that use it.
type lazyManifestReader struct{ worker *Worker }

func (r lazyManifestReader) Manifest(incident string) ([]activities.ManifestLine, []activities.IntegrityFinding,
	error,
) {
	return r.worker.Activities.Evidence.Manifest(
		incident,
		r.worker.Authority.Keyring(),
	) //nolint:wrapcheck // the error names the manifest
}

// watchLibrary applies edits of playbooks until Close.
func (w *Worker) watchLibrary(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	w.closers = append(w.closers, func() { cancel(); <-done })
	go func() {
		defer close(done)
		w.Library.ReloadPeriodically(ctx, 2*time.Second, w.Log)
	}()
}
