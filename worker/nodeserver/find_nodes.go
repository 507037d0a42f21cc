package nodeserver

import (
	"context"
	"maps"
	"slices"
	"sync"

	"stanch/sensors/gatewayrpc"
	"stanch/sensors/truncate"
	"stanch/worker/httpserver"
)

// NodesRunningContainer returns the nodes connected here that run a container: the given one, or any. It asks the
// nodes.
func (h *Server) NodesRunningContainer(ctx context.Context, container, node string) ([]string, error) {
	names := slices.Sorted(maps.Keys(h.ConnectedNodes()))
	if node != "" {
		if !slices.Contains(names, node) {
			return nil, httpserver.NotFound("node %s is not connected here; `stanch doctor` lists the nodes", truncate.Name(node))
		}
		names = []string{node}
	}
	var mu sync.Mutex
	var found []string
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			var state gatewayrpc.ContainmentState
			_, err := h.Call(ctx, name, gatewayrpc.CommandLockState,
				gatewayrpc.StateQuery{Target: gatewayrpc.NodeTarget{ContainerID: container}}, &state)
			if err != nil || state.TargetGone {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, name)
		})
	}
	all.Wait()
	slices.Sort(found)
	return found, nil
}
