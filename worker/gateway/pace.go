package gateway

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"stanch/worker/config"
)

// paces bounds what each node may send. A node that dials anew has no new allowance.
type paces struct {
	config config.Nodes
	mu     sync.Mutex
	by     map[string]*pace
}

// pace is one node's allowance.
type pace struct {
	detections, bytes *rate.Limiter
	// words are those about itself. What comes faster is left out: the next says what has become of it.
	words *rate.Limiter

	mu      sync.Mutex
	until   time.Time // it was told to wait until then
	limited uint64
}

// A sensor tells how it is every ten seconds, and at once when it dials.
const (
	wordsRate   = 1
	wordsAtOnce = 10
)

// maxPaces bounds how many nodes are told apart; past it all begin anew.
const maxPaces = 10_000

func (p *paces) of(node string) *pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by == nil || len(p.by) > maxPaces {
		p.by = map[string]*pace{}
	}
	if p.by[node] == nil {
		c := p.config.OrDefault()
		p.by[node] = &pace{
			detections: rate.NewLimiter(rate.Limit(c.Rate), c.Burst), bytes: rate.NewLimiter(rate.Limit(c.Bytes), c.Bytes*burstSeconds),
			words: rate.NewLimiter(wordsRate, wordsAtOnce),
		}
	}
	return p.by[node]
}

// take takes a batch from the allowance, or tells how long to wait for it. A batch larger than all that may ever be
// taken at once is taken as that.
func (p *pace) take(detections, bytes int, now time.Time) time.Duration {
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
	p.limited++
	wait = max(wait, 100*time.Millisecond)
	p.until = now.Add(wait)
	return wait
}

// early tells for how long a node that was told to wait should still have waited.
func (p *pace) early(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until.Sub(now)
}

// leeway is how much earlier than told a node may come: its timer and the way are not exact.
const leeway = 50 * time.Millisecond

// hold waits, on the node's own stream: who does not wait as told is not read, and fills its own connection only.
func hold(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
