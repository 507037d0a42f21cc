package decisions

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/truncate"
	"stanch/worker/httpserver"
	"stanch/worker/ingest"
	"stanch/worker/queries"
	"stanch/workflows/incident"
)

// resolveTargets resolves the target of a request to detections without an event. The API server resolves a pod, which
// is then identified by its UID; a node resolves a container outside the cluster.
func (d *Service) resolveTargets(ctx context.Context, q ContainRequest) ([]sensors.Detection, error) {
	name := strings.TrimPrefix(q.Target, "pod/")
	namespace, pod, isPod := strings.Cut(name, "/")
	container, isContainer := strings.CutPrefix(q.Target, "container/")
	if !isContainer {
		container = q.Target
	}
	var one sensors.Detection
	switch {
	case queries.IsIncidentID(q.Target):
		return d.incidentTargets(ctx, q)
	case isPod && !isContainer && namespace != "" && pod != "" && !strings.Contains(pod, "/"):
		one.Event.Container.Pod = sensors.Pod{Namespace: namespace, Name: pod, UID: q.UID}
		if err := d.ManualRequests.Ingester.CompletePod(ctx, &one); err != nil {
			return nil, unresolvedTargetError(q.Target, err)
		}
		if !one.TargetConfirmed {
			return nil, unresolvedTargetError(q.Target, errors.New("not confirmed by the API server"))
		}
		return []sensors.Detection{one}, nil
	case isPod && !isContainer || !ingest.IsContainerID(container):
		return nil, httpserver.BadRequest("invalid target %q; use pod/NAMESPACE/NAME, container/ID or an incident id",
			truncate.Name(q.Target))
	}
	container, err := d.completeContainerID(ctx, container)
	if err != nil {
		return nil, err
	}
	one, err = d.resolveContainer(ctx, container, q.Node)
	if err != nil {
		return nil, err
	}
	return []sensors.Detection{one}, nil
}

// completeContainerID returns the complete id for a prefix of a container id, if exactly one container of all incidents
// matches. An id that matches none is returned unchanged. Nodes are queried, and statements signed, for complete ids
// only.
func (d *Service) completeContainerID(ctx context.Context, id string) (string, error) {
	if !shortContainerIDPattern.MatchString(id) {
		return id, nil
	}
	known, err := d.Queries.Incidents(ctx)
	if err != nil {
		return "", err
	}
	var found []string
	for _, in := range known {
		for _, t := range in.Targets {
			if full := t.ContainerID; strings.HasPrefix(full, id) && ingest.IsContainerID(full) &&
				!slices.Contains(found, full) {
				found = append(found, full)
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		slices.Sort(found)
		return "", httpserver.BadRequest("container id %s matches %d containers; use the complete id of one:\n  container/%s",
			id, len(found), strings.Join(found[:min(len(found), maxRequestTargets)], "\n  container/"))
	}
	return id, nil
}

// unresolvedTargetError returns status 503 for an error that is temporary, and 404 for others.
func unresolvedTargetError(target string, err error) error {
	if later := (*ingest.TemporaryError)(nil); errors.As(err, &later) {
		return httpserver.Errorf(http.StatusServiceUnavailable, "find %s: %v; nothing was contained; try again",
			truncate.Name(target), err)
	}
	return httpserver.NotFound("find %s: %v", truncate.Name(target), err)
}

// incidentTargets resolves the pods and containers of an incident. A pod whose UID changed is an error.
func (d *Service) incidentTargets(ctx context.Context, q ContainRequest) ([]sensors.Detection, error) {
	in, err := d.Queries.Incident(ctx, q.Target)
	if err != nil {
		return nil, err
	}
	var out []sensors.Detection
	for _, t := range in.Targets {
		if !t.Kind.IsDetectable() || len(out) >= maxRequestTargets {
			continue
		}
		var one sensors.Detection
		if t.Kind == playbooks.TargetPod {
			one.Event.Container.Pod = sensors.Pod{Namespace: t.Namespace, Name: t.Name, UID: t.UID}
			err = d.ManualRequests.Ingester.CompletePod(ctx, &one)
			if err == nil && !one.TargetConfirmed {
				err = errors.New("not confirmed by the API server")
			}
			if err != nil {
				return nil, unresolvedTargetError(t.String(), err)
			}
		} else if one, err = d.resolveContainer(ctx, t.UID, t.Node); err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	if len(out) == 0 {
		return nil, httpserver.NotFound("incident %s has no pod or container to contain", q.Target)
	}
	return out, nil
}

// resolveContainer finds a container by its id: its pod, or the node that it runs on.
func (d *Service) resolveContainer(ctx context.Context, id, node string) (sensors.Detection, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var one sensors.Detection
	found, err := d.ManualRequests.NodeServer.NodesRunningContainer(ctx, id, node)
	switch {
	case err != nil:
		return one, err
	case len(found) == 0:
		hint := ""
		if shortContainerIDPattern.MatchString(id) {
			hint = "use the complete id, since no incident has a container with this prefix, or "
		}
		return one, httpserver.NotFound("find container %s: not running on any connected node; %suse pod/NAMESPACE/NAME",
			truncate.Name(id), hint)
	case len(found) > 1:
		return one, httpserver.BadRequest("find container %s: it runs on %s; set --node", truncate.Name(id),
			strings.Join(found, " and "))
	}
	one.Node, one.Event.Node, one.Event.Container.ID = found[0], found[0], id
	if err := d.ManualRequests.Ingester.CompletePod(ctx, &one); err != nil {
		return one, unresolvedTargetError(id, err)
	}
	if one.TargetConfirmed {
		return one, nil
	}
	return d.matchDetectedName(ctx, one)
}

// matchDetectedName sets the name under which a container outside the cluster was detected, so that the request joins
// its incident.
func (d *Service) matchDetectedName(ctx context.Context, one sensors.Detection) (sensors.Detection, error) {
	open, err := d.Queries.Incidents(ctx)
	if err != nil {
		return one, err
	}
	target := incident.TargetOfDetection(one)
	for _, in := range open {
		i := slices.IndexFunc(in.Targets, func(t playbooks.Target) bool {
			return t.ID() == target.ID() &&
				t.Node == one.Node
		})
		if in.Status != "open" || i < 0 {
			continue
		}
		c := &one.Event.Container
		c.Name, c.Image, c.ImageDigest = in.Targets[i].ContainerName, in.Workload.Image, in.Workload.ImageDigest
		if in.Workload.Kind != "Container" {
			c.Workload = sensors.Workload{Kind: in.Workload.Kind, Name: in.Workload.Name}
		}
		return one, nil
	}
	return one, nil
}
