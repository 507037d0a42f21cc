package gateway

import (
	"sync"
	"time"
)

const (
	// seenFor is longer than a signature is taken.
	seenFor = 11 * time.Minute
	// maxSeen bounds the memory of requests.
	maxSeen = 50_000
)

// seen remembers requests for as long as their signature is taken: a replay is refused. When it is full it forgets the
// oldest and goes on: a vote, a mark and an extension are safe to repeat, a click that nobody can make is not safe.
type seen struct {
	mu sync.Mutex
	by map[string]uint64 // the number under which an id was seen last
	// order are the requests as they came, the oldest first. Those that were forgotten stay in it until they age.
	order []sight
	last  uint64
}

// sight is one request that was seen.
type sight struct {
	id     string
	number uint64
	at     time.Time
}

// first tells whether a request comes for the first time.
func (s *seen) first(id string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]uint64{}
	}
	for len(s.order) > 0 && now.Sub(s.order[0].at) > seenFor {
		s.drop()
	}
	if _, known := s.by[id]; known {
		return false
	}
	if len(s.order) >= maxSeen {
		s.drop()
	}
	s.last++
	s.by[id] = s.last
	s.order = append(s.order, sight{id: id, number: s.last, at: now})
	return true
}

// drop takes the oldest away, unless it was forgotten and has come again since.
func (s *seen) drop() {
	oldest := s.order[0]
	s.order[0] = sight{}
	s.order = s.order[1:]
	if s.by[oldest.id] == oldest.number {
		delete(s.by, oldest.id)
	}
}

// forget lets a request that failed be sent again.
func (s *seen) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.by, id)
}
