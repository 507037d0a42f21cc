package slackendpoint

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// replayWindow is longer than a signature is accepted.
	replayWindow = 11 * time.Minute
	// maxReplayEntries is the maximum number of requests in the cache.
	maxReplayEntries = 50_000
)

// replayCache stores requests for as long as their signature is accepted, to refuse replays. When it is full, it drops
// the oldest: repeating a vote, a triage decision or an extension is harmless, blocking new clicks is not. The zero
// value is ready to use.
type replayCache struct {
	mu     sync.Mutex
	seenAt *lru.LRU[string, time.Time] // by id; never read in a way that changes the order
}

// isFirst reports whether a request is new, and records it.
func (s *replayCache) isFirst(id string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seenAt == nil {
		cache, err := lru.NewLRU[string, time.Time](maxReplayEntries, nil)
		if err != nil {
			panic(fmt.Sprintf("make the replay cache: %v", err)) // only a size below 1 is an error
		}
		s.seenAt = cache
	}
	for {
		_, oldest, ok := s.seenAt.GetOldest()
		if !ok || now.Sub(oldest) <= replayWindow {
			break
		}
		s.seenAt.RemoveOldest()
	}
	if s.seenAt.Contains(id) {
		return false
	}
	s.seenAt.Add(id, now)
	return true
}

// forget lets a failed request be sent again.
func (s *replayCache) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seenAt != nil {
		s.seenAt.Remove(id)
	}
}
