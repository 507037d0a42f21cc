// Package distinctcount counts how many distinct items an actor used within a sliding time window. A rule such as
// "read ten secrets in ten minutes" cannot be evaluated on a single event.
//
// It refuses to grow without limit: it keeps the most recent actors, and the most recent items of each, and forgets
// the others. It refuses to read a clock: callers pass the time of each item, so that recorded events give the same
// counts. An item that is added twice counts once.
package distinctcount

import (
	"container/list"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// The defaults of Options.
const (
	defaultWindow           = 10 * time.Minute
	defaultMaxActors        = 4096
	defaultMaxItemsPerActor = 512
)

// Options are the limits of a Counter. A zero or negative field means the default.
type Options struct {
	Window           time.Duration // length of the time window; default 10 minutes
	MaxActors        int           // number of remembered actors; default 4096
	MaxItemsPerActor int           // number of remembered items per actor; default 512
}

// Counter counts distinct items per actor. It is safe for concurrent use. Create it with New.
type Counter struct {
	options Options

	mu     sync.Mutex
	actors *simplelru.LRU[string, *actorItems]
}

// actorItems are the items of one actor with their times.
type actorItems struct {
	byKey       map[string]*list.Element
	newestFirst *list.List // of *seenItem, the newest first
}

type seenItem struct {
	key    string
	seenAt time.Time
}

// New returns an empty counter.
func New(o Options) *Counter {
	if o.Window <= 0 {
		o.Window = defaultWindow
	}
	if o.MaxActors <= 0 {
		o.MaxActors = defaultMaxActors
	}
	if o.MaxItemsPerActor <= 0 {
		o.MaxItemsPerActor = defaultMaxItemsPerActor
	}
	actors, _ := simplelru.NewLRU[string, *actorItems](o.MaxActors, nil) // fails only without a size
	return &Counter{options: o, actors: actors}
}

// Add records that an actor used an item at a time, and returns how many distinct items the actor used in the window
// that ends at that time. The result is at least 1 and at most MaxItemsPerActor.
func (w *Counter) Add(name, what string, at time.Time) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	actor, known := w.actors.Get(name)
	if !known {
		actor = &actorItems{byKey: map[string]*list.Element{}, newestFirst: list.New()}
		w.actors.Add(name, actor)
	}
	return actor.addItem(what, at, w.options)
}

func (a *actorItems) addItem(what string, at time.Time, o Options) int {
	if known := a.byKey[what]; known == nil {
		a.byKey[what] = a.newestFirst.PushFront(&seenItem{what, at})
	} else {
		if d := known.Value.(*seenItem); at.After(d.seenAt) {
			d.seenAt = at
		}
		a.newestFirst.MoveToFront(known)
	}
	// Logs arrive in batches and out of order, so every item is checked, and not only the last one in the list.
	n := 0
	for e := a.newestFirst.Front(); e != nil; {
		next := e.Next()
		switch age := at.Sub(e.Value.(*seenItem).seenAt); {
		case age > o.Window || a.newestFirst.Len() > o.MaxItemsPerActor && next == nil:
			a.newestFirst.Remove(e)
			delete(a.byKey, e.Value.(*seenItem).key)
		default:
			n++
		}
		e = next
	}
	return n
}
