package slackendpoint

import (
	"sync"
	"time"
)

const (
	// replayWindow is longer than a signature is accepted.
	replayWindow = 11 * time.Minute
	// maxReplayEntries is the maximum number of requests in the cache.
	maxReplayEntries = 50_000
)

// replayCache stores requests for as long as their signature is accepted, to refuse replays. When it is full, it drops
// the oldest: repeating a vote, a triage decision or an extension is harmless, blocking new clicks is not.
type replayCache struct {
	mu           sync.Mutex
	sequenceByID map[string]uint64 // sequence number of an id's last request
	// oldestFirst are the requests, oldest first. Forgotten requests stay in it until they expire.
	oldestFirst  []replayEntry
	lastSequence uint64
}

// replayEntry is one request.
type replayEntry struct {
	id       string
	sequence uint64
	seenAt   time.Time
}

// isFirst reports whether a request is new, and records it.
func (s *replayCache) isFirst(id string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sequenceByID == nil {
		s.sequenceByID = map[string]uint64{}
	}
	for len(s.oldestFirst) > 0 && now.Sub(s.oldestFirst[0].seenAt) > replayWindow {
		s.dropOldest()
	}
	if _, known := s.sequenceByID[id]; known {
		return false
	}
	if len(s.oldestFirst) >= maxReplayEntries {
		s.dropOldest()
	}
	s.lastSequence++
	s.sequenceByID[id] = s.lastSequence
	s.oldestFirst = append(s.oldestFirst, replayEntry{id: id, sequence: s.lastSequence, seenAt: now})
	return true
}

// dropOldest removes the oldest request, unless it was forgotten and recorded again since.
func (s *replayCache) dropOldest() {
	oldest := s.oldestFirst[0]
	s.oldestFirst[0] = replayEntry{}
	s.oldestFirst = s.oldestFirst[1:]
	if s.sequenceByID[oldest.id] == oldest.sequence {
		delete(s.sequenceByID, oldest.id)
	}
}

// forget lets a failed request be sent again.
func (s *replayCache) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sequenceByID, id)
}
