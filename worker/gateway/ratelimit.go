package gateway

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"stanch/worker/config"
)

// nodeRateLimits bounds what each node may send. A node that dials anew has no new allowance.
type nodeRateLimits struct {
	config config.NodeLimits
	mu     sync.Mutex
	byNode map[string]*nodeRateLimit
}

// nodeRateLimit is one node's allowance.
type nodeRateLimit struct {
	detections, bytes *rate.Limiter
	// healthReports are those about itself. What comes faster is left out: the next says what has become of it.
	healthReports *rate.Limiter

	mu             sync.Mutex
	waitUntil      time.Time // it was told to wait until then
	limitedBatches uint64
}

// A sensor tells how it is every ten seconds, and at once when it dials.
const (
	healthReportsPerSecond = 1
	healthReportBurst      = 10
)

// maxNodeRateLimits bounds how many nodes are told apart; past it all begin anew.
const maxNodeRateLimits = 10_000

func (p *nodeRateLimits) forNode(node string) *nodeRateLimit {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byNode == nil || len(p.byNode) > maxNodeRateLimits {
		p.byNode = map[string]*nodeRateLimit{}
	}
	if p.byNode[node] == nil {
		c := p.config.WithDefaults()
		p.byNode[node] = &nodeRateLimit{
			detections: rate.NewLimiter(rate.Limit(c.DetectionsPerSecond), c.DetectionBurst), bytes: rate.NewLimiter(rate.Limit(c.BytesPerSecond), c.BytesPerSecond*sourceBurstSeconds),
			healthReports: rate.NewLimiter(healthReportsPerSecond, healthReportBurst),
		}
	}
	return p.byNode[node]
}

// reserveBatch takes a batch from the allowance, or tells how long to wait for it. A batch larger than all that may ever be
// taken at once is taken as that.
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

// remainingWait tells for how long a node that was told to wait should still have waited.
func (p *nodeRateLimit) remainingWait(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waitUntil.Sub(now)
}

// earlyTolerance is how much earlier than told a node may come: its timer and the way are not exact.
const earlyTolerance = 50 * time.Millisecond

// sleep waits, on the node's own stream: who does not wait as told is not read, and fills its own connection only.
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
