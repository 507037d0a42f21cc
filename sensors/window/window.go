// Package window counts how many different things somebody did within a sliding span of time: "read ten secrets in ten
// minutes" is seen in no single event.
//
// It refuses to grow: of actors and of what each did it keeps the newest, and forgets the rest. It has no clock: whoever
// adds says when something happened, so that recorded events give the same counts. What is added twice counts once.
package window

import (
	"container/list"
	"sync"
	"time"
)

// The defaults of Options.
const (
	defaultSpan   = 10 * time.Minute
	defaultActors = 4096
	defaultThings = 512
)

// Options bound a window; zero values are the defaults.
type Options struct {
	Span   time.Duration // how far back counts; default 10 minutes
	Actors int           // how many are remembered; default 4096
	Things int           // how many different things of each; default 512
}

// Window counts. It may be used by many goroutines.
type Window struct {
	o Options

	mu     sync.Mutex
	actors map[string]*list.Element
	recent *list.List // of *actor, the one that did something last in front
}

// actor is what one did, with the time of each.
type actor struct {
	name string
	did  map[string]*list.Element
	last *list.List // of *deed, the newest in front
}

type deed struct {
	what string
	at   time.Time
}

// New makes a window.
func New(o Options) *Window {
	if o.Span <= 0 {
		o.Span = defaultSpan
	}
	if o.Actors <= 0 {
		o.Actors = defaultActors
	}
	if o.Things <= 0 {
		o.Things = defaultThings
	}
	return &Window{o: o, actors: map[string]*list.Element{}, recent: list.New()}
}

// Add notes that an actor did something, and tells how many different things they did within the span before it.
func (w *Window) Add(name, what string, at time.Time) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	element := w.actors[name]
	if element == nil {
		element = w.recent.PushFront(&actor{name: name, did: map[string]*list.Element{}, last: list.New()})
		w.actors[name] = element
		if len(w.actors) > w.o.Actors {
			oldest := w.recent.Back()
			w.recent.Remove(oldest)
			delete(w.actors, oldest.Value.(*actor).name)
		}
	}
	w.recent.MoveToFront(element)
	return element.Value.(*actor).add(what, at, w.o)
}

func (a *actor) add(what string, at time.Time, o Options) int {
	if known := a.did[what]; known == nil {
		a.did[what] = a.last.PushFront(&deed{what, at})
	} else {
		if d := known.Value.(*deed); at.After(d.at) {
			d.at = at
		}
		a.last.MoveToFront(known)
	}
	// Logs come in batches and out of order: so each is looked at, and not only the last in the list.
	n := 0
	for e := a.last.Front(); e != nil; {
		next := e.Next()
		switch age := at.Sub(e.Value.(*deed).at); {
		case age > o.Span || a.last.Len() > o.Things && next == nil:
			a.last.Remove(e)
			delete(a.did, e.Value.(*deed).what)
		default:
			n++
		}
		e = next
	}
	return n
}
