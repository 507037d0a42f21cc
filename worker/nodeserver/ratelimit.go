package nodeserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"stanch/worker/config"
)

// nodeRateLimits limits what each node may send. Reconnecting does not reset the limit.
type nodeRateLimits struct {
	config config.NodeLimits
	mu     sync.Mutex
	byNode *lru.LRU[string, *nodeRateLimit] // made at the first use
}

// nodeRateLimit is the limit of one node.
type nodeRateLimit struct {
	detections, bytes *rate.Limiter
	// healthReports limits health reports. Excess reports are dropped, because the next one has the newer state.
	healthReports *rate.Limiter

	mu             sync.Mutex
	waitUntil      time.Time // end of the wait that the node was sent
	limitedBatches uint64
}

// A sensor sends a health report every ten seconds, and at once when it connects.
const (
	healthReportsPerSecond = 1
	healthReportBurst      = 10
)

// maxNodeRateLimits is the maximum number of nodes; beyond it, the limit of the node that connected longest ago starts
// anew.
const maxNodeRateLimits = 10_000

// nodeBurstSeconds is how many seconds' worth of bytes a node may send at once after a pause.
const nodeBurstSeconds = 10

func (p *nodeRateLimits) forNode(node string) *nodeRateLimit {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byNode == nil {
		cache, err := lru.NewLRU[string, *nodeRateLimit](maxNodeRateLimits, nil)
		if err != nil {
			panic(fmt.Sprintf("make the cache of rate limits: %v", err)) // only a size below 1 is an error
		}
		p.byNode = cache
	}
	limit, known := p.byNode.Get(node)
	if !known {
		c := p.config.WithDefaults()
		limit = &nodeRateLimit{
			detections:    rate.NewLimiter(rate.Limit(c.DetectionsPerSecond), c.DetectionBurst),
			bytes:         rate.NewLimiter(rate.Limit(c.BytesPerSecond), c.BytesPerSecond*nodeBurstSeconds),
			healthReports: rate.NewLimiter(healthReportsPerSecond, healthReportBurst),
		}
		p.byNode.Add(node, limit)
	}
	return limit
}

// reserveBatch takes a batch from the limit, or returns how long to wait for it. A batch larger than the burst counts
// as the burst.
func (p *nodeRateLimit) reserveBatch(detections, bytes int, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var wait time.Duration
	taken := []*rate.Reservation{
		p.detections.ReserveN(now, min(detections, p.detections.Burst())), p.bytes.ReserveN(now, min(bytes, p.bytes.Burst())),
	}
	for _, r := range taken {
		wait = max(wait, r.DelayFrom(now))
	}
	if wait <= 0 {
		return 0
	}
	for _, r := range taken {
		r.CancelAt(now)
	}
	p.limitedBatches++
	wait = max(wait, 100*time.Millisecond)
	p.waitUntil = now.Add(wait)
	return wait
}

// remainingWait returns how much longer a throttled node should have waited.
func (p *nodeRateLimit) remainingWait(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waitUntil.Sub(now)
}

// earlyTolerance is how much too early a node may send, because timers and networks are inexact.
const earlyTolerance = 50 * time.Millisecond

// sleep waits on the node's own stream: a node that ignores the wait is not read, and fills only its own connection.
func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
