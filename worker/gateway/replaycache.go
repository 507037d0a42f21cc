package gateway

import (
	"sync"
	"time"
)

const (
	// replayWindow is longer than a signature is taken.
	replayWindow = 11 * time.Minute
	// maxReplayEntries bounds the memory of requests.
	maxReplayEntries = 50_000
)

// replayCache remembers requests for as long as their signature is taken: a replay is refused. When it is full it forgets the
// oldest and goes on: a vote, a mark and an extension are safe to repeat, a click that nobody can make is not safe.
type replayCache struct {
	mu           sync.Mutex
	sequenceByID map[string]uint64 // the number under which an id was seen last
	// oldestFirst are the requests as they came, the oldest first. Those that were forgotten stay in it until they age.
	oldestFirst  []replayEntry
	lastSequence uint64
}

// replayEntry is one request that was seen.
type replayEntry struct {
	id       string
	sequence uint64
	seenAt   time.Time
}

// isFirst tells whether a request comes for the first time.
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

// dropOldest takes the oldest away, unless it was forgotten and has come again since.
func (s *replayCache) dropOldest() {
	oldest := s.oldestFirst[0]
	s.oldestFirst[0] = replayEntry{}
	s.oldestFirst = s.oldestFirst[1:]
	if s.sequenceByID[oldest.id] == oldest.sequence {
		delete(s.sequenceByID, oldest.id)
	}
}

// forget lets a request that failed be sent again.
func (s *replayCache) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sequenceByID, id)
}
