// Package ratelimit limits how often each of many callers may do something. It never waits, and it bounds the callers
// that it remembers: beyond the maximum, the one that called least recently starts anew.
package ratelimit

import (
	"fmt"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// maxCallers is the maximum number of remembered callers.
const maxCallers = 10_000

// Limit is how often one caller may do something.
type Limit struct {
	Rate  rate.Limit
	Burst int // how many of them may come at once
}

// People is the limit of one person's requests.
func People() Limit { return Limit{Rate: 2, Burst: 60} }

// PerCaller limits callers by key. The zero value is ready to use. It is safe for concurrent use.
type PerCaller struct {
	mu       sync.Mutex
	limiters *lru.LRU[string, *rate.Limiter]
}

// Allow reports whether the caller may do it now. The limit of a caller's first call applies to the later ones too.
func (l *PerCaller) Allow(key string, limit Limit) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limiters == nil {
		l.limiters = newCache()
	}
	limiter, known := l.limiters.Get(key)
	if !known {
		limiter = rate.NewLimiter(limit.Rate, limit.Burst)
		l.limiters.Add(key, limiter)
	}
	return limiter.Allow()
}

func newCache() *lru.LRU[string, *rate.Limiter] {
	limiters, err := lru.NewLRU[string, *rate.Limiter](maxCallers, nil)
	if err != nil {
		panic(fmt.Sprintf("make a cache of %d limiters: %v", maxCallers, err)) // only a size below 1 is an error
	}
	return limiters
}
