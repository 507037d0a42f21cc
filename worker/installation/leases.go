package installation

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"stanch/sensors/truncate"
)

// LeasesPath is the path at the worker's health address that says which actions have leases in force.
const LeasesPath = "/leases"

// LeasesInForce is the answer at LeasesPath. It names no target: whoever can reach the address may read it.
type LeasesInForce struct {
	// Actions counts the leases in force by the name of their action.
	Actions map[string]int `json:"actions"`
	// Temporal is the address and the namespace of the Temporal that has the leases: HOST:PORT/NAMESPACE.
	Temporal string `json:"temporal"`
}

// LeaseCheck asks a worker whether a change would leave leases in force without an undo.
type LeaseCheck struct {
	// WorkerURL is the URL of a worker's health address.
	WorkerURL string
	// Permitted are the actions that the worker can undo after the change.
	Permitted []string
	// Temporal is the Temporal after the change: HOST:PORT/NAMESPACE; "" if it stays. The leases are in the one before.
	Temporal string
}

// maxLeasesBytes limits the answer.
const maxLeasesBytes = 1 << 20

// Run returns an error if a lease is in force that the worker could no longer undo. If the worker does not answer,
// nobody knows, and that is an error.
func (c LeaseCheck) Run(ctx context.Context) error {
	leases, err := askLeases(ctx, c.WorkerURL)
	if err != nil {
		return fmt.Errorf("ask the worker which leases are in force: %w; if you know that none is, set uninstall.checkLeases=false "+
			"with `helm upgrade` first, or roll back with --no-hooks",
			err)
	}
	permitted := c.Permitted
	if c.Temporal != "" && c.Temporal != leases.Temporal {
		permitted = nil
	}
	var left []string
	for _, name := range slices.Sorted(maps.Keys(leases.Actions)) {
		if !slices.Contains(permitted, name) {
			left = append(left, fmt.Sprintf("%d of %s", leases.Actions[name], truncate.Name(name)))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("leases are in force that could no longer be undone: %s; end them first with "+
			"`stanch release --all`, or wait until they expire (`stanch leases` lists them)", strings.Join(left, ", "))
	}
	return nil
}

func askLeases(ctx context.Context, url string) (*LeasesInForce, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+LeasesPath, nil)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxLeasesBytes))
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s: %s", resp.Status, truncate.Reason(strings.TrimSpace(string(raw))))
	}
	var out LeasesInForce
	if err := json.Unmarshal(raw, &out); err != nil || out.Actions == nil {
		return nil, fmt.Errorf("it answers with something else than leases: %s", truncate.Name(string(raw)))
	}
	return &out, nil
}
