// Package window counts how many different things somebody did within a sliding span of time: "read ten secrets in ten
// minutes" is seen in no single event.
//
// It refuses to grow: of actors and of what each did it keeps the newest, and forgets the rest. It has no clock: whoever
// adds says when something happened, so that recorded events give the same counts. What is added twice counts once.
package distinctcount

import (
	"container/list"
	"sync"
	"time"
)

// The defaults of Options.
const (
	defaultWindow           = 10 * time.Minute
	defaultMaxActors        = 4096
	defaultMaxItemsPerActor = 512
)

// Options bound a window; zero values are the defaults.
type Options struct {
	Window           time.Duration // how far back counts; default 10 minutes
	MaxActors        int           // how many are remembered; default 4096
	MaxItemsPerActor int           // how many different things of each; default 512
}

// Counter counts. It may be used by many goroutines.
type Counter struct {
	options Options

	mu     sync.Mutex
	actors map[string]*list.Element
	lru    *list.List // of *actor, the one that did something last in front
}

// actorItems is what one did, with the time of each.
type actorItems struct {
	name        string
	byKey       map[string]*list.Element
	newestFirst *list.List // of *deed, the newest in front
}

type seenItem struct {
	key    string
	seenAt time.Time
}

// New makes a window.
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
	return &Counter{options: o, actors: map[string]*list.Element{}, lru: list.New()}
}

// Add notes that an actor did something, and tells how many different things they did within the span before it.
func (w *Counter) Add(name, what string, at time.Time) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	element := w.actors[name]
	if element == nil {
		element = w.lru.PushFront(&actorItems{name: name, byKey: map[string]*list.Element{}, newestFirst: list.New()})
		w.actors[name] = element
		if len(w.actors) > w.options.MaxActors {
			oldest := w.lru.Back()
			w.lru.Remove(oldest)
			delete(w.actors, oldest.Value.(*actorItems).name)
		}
	}
	w.lru.MoveToFront(element)
	return element.Value.(*actorItems).addItem(what, at, w.options)
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
	// Logs come in batches and out of order: so each is looked at, and not only the last in the list.
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
