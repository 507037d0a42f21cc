// Package baseline learns what containers of an image usually do, so that "unusual here" is a measured statement: which
// programs they execute and where they connect, by image digest.
//
// It is pure and bounded. It refuses to call anything unusual before it watched for long enough, and to take for usual
// what it saw for the first time a moment ago: what is new after the time of learning stays new for a day, so that
// an attack does not teach itself. A program that was not in the image is never learnt.
package baseline

import (
	"cmp"
	"container/list"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"stanch/sensors"
	"stanch/sensors/duration"
)

// Options say how to learn. The zero value is right for a cluster.
type Options struct {
	// LearningPeriod is how long an image is watched before anything can be new. Default 24 h.
	LearningPeriod time.Duration
	// NoveltyPeriod is how long what is new stays new. Default 24 h.
	NoveltyPeriod time.Duration
	// Retention is how long an image is kept that no container has any more. Default 60 days.
	Retention time.Duration
	// MaxImages bounds how many are kept; the one that was not seen for the longest time goes first. Default 500.
	MaxImages int
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Bounds of what is kept of one image.
const (
	maxExecutablesPerImage  = 2000
	maxDestinationsPerImage = 500
	maxTrackedContainers    = 64 // counted one by one; above, the number only grows
	maxTextBytes            = 512
)

// Image is what was learnt of one image. Its JSON is what `stanch-sensor baseline export` writes.
type Image struct {
	Digest    string    `json:"digest"`
	Name      string    `json:"image,omitempty"` // as it was called last
	FirstSeen time.Time `json:"first"`
	LastSeen  time.Time `json:"last"`
	// ContainerCount is in how many containers it was watched.
	ContainerCount int                    `json:"container_count"`
	Executables    map[string]Observation `json:"executables,omitempty"`
	Destinations   map[string]Observation `json:"destinations,omitempty"`
	// Full: while it was learnt there were always more executables or destinations than are kept, so nothing can be called
	// new. One flood of them, such as a scan makes, is not enough.
	ExecutablesOverflowed  bool `json:"executables_overflowed,omitempty"`
	DestinationsOverflowed bool `json:"destinations_overflowed,omitempty"`

	executableOverflow, destinationOverflow overflow

	recentContainers []string // containers, the newest last
	lruElement       *list.Element
}

// overflow are the parts of the time of learning in which there was more than is kept.
type overflow struct {
	intervals       int
	lastInterval    time.Duration
	retryEvictionAt time.Time // until then nobody looks for room: there was none a moment ago
}

// The time of learning has 24 parts; what overflows in a quarter of them always does.
const (
	learningIntervals    = 24
	maxOverflowIntervals = 6
)

// Observation is something that containers of an image did.
type Observation struct {
	FirstSeen time.Time `json:"first"`
	LastSeen  time.Time `json:"last"`
	Count     uint64    `json:"count"`
}

// Baselines are what was learnt on one node. Its methods may be called from several goroutines.
type Baselines struct {
	options Options

	mu     sync.Mutex
	images map[string]*Image
	lru    *list.List // of digests, the most recently seen in front
	dirty  bool
}

// New makes baselines that know nothing.
func New(o Options) *Baselines {
	if o.LearningPeriod <= 0 {
		o.LearningPeriod = 24 * time.Hour
	}
	if o.NoveltyPeriod <= 0 {
		o.NoveltyPeriod = 24 * time.Hour
	}
	if o.Retention <= 0 {
		o.Retention = 60 * 24 * time.Hour
	}
	if o.MaxImages <= 0 {
		o.MaxImages = 500
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Baselines{options: o, images: map[string]*Image{}, lru: list.New()}
}

// Compare says how usual an event is for its image, and learns from it. What has no digest is not judged.
func (b *Baselines) Compare(e *sensors.Event) sensors.Baseline {
	digest := e.Container.ImageDigest
	if digest == "" || len(digest) > maxTextBytes || e.Kind != sensors.KindExec && e.Kind != sensors.KindConnect {
		return sensors.Baseline{}
	}
	now := b.options.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	image := b.findOrAddImage(digest, e, now)
	verdict := sensors.Baseline{LearningComplete: now.Sub(image.FirstSeen) >= b.options.LearningPeriod}
	var what, name string
	var fresh bool
	switch e.Kind {
	case sensors.KindExec:
		name = e.Process.Exe
		foreign := e.Process.ExeInUpperLayer || e.Process.ExeIsMemfd || e.Process.ExeDeleted
		what, fresh = "executed", true
		if name != "" && len(name) <= maxTextBytes && !foreign && !e.Process.ExecedInto {
			fresh = b.recordObservation(image.Executables, &image.ExecutablesOverflowed, &image.executableOverflow, maxExecutablesPerImage, name, image, now)
		} else if known, ok := image.Executables[name]; ok {
			fresh = b.isNovel(known, image, now)
		}
		verdict.NewExe = fresh && !image.ExecutablesOverflowed
		fresh = verdict.NewExe
	case sensors.KindConnect:
		name = DestinationKey(e.Network)
		if name == "" {
			return verdict
		}
		what = "connected to"
		fresh = b.recordObservation(image.Destinations, &image.DestinationsOverflowed, &image.destinationOverflow, maxDestinationsPerImage, name, image, now)
		verdict.NewDestination = fresh && !image.DestinationsOverflowed
		fresh = verdict.NewDestination
	default: // sorted out above
	}
	if verdict.LearningComplete && fresh {
		verdict.Reason = fmt.Sprintf("Never %s in %s of this image that this node watched for %s: %s.", what, formatContainerCount(image.ContainerCount), formatAge(now.Sub(image.FirstSeen)), name)
	}
	return verdict
}

// findOrAddImage finds or makes an image's entry. The caller holds b.mu.
func (b *Baselines) findOrAddImage(digest string, e *sensors.Event, now time.Time) *Image {
	image := b.images[digest]
	if image == nil {
		image = &Image{Digest: digest, FirstSeen: now, Executables: map[string]Observation{}, Destinations: map[string]Observation{}}
		b.images[digest] = image
		image.lruElement = b.lru.PushFront(digest)
		for b.lru.Len() > b.options.MaxImages {
			b.evictImage(b.lru.Back())
		}
		b.dirty = true
	} else {
		b.lru.MoveToFront(image.lruElement)
	}
	if len(e.Container.Image) <= maxTextBytes {
		image.Name = e.Container.Image
	}
	image.LastSeen = now
	if id := e.Container.ID; !slices.Contains(image.recentContainers, id) {
		image.ContainerCount++
		if image.recentContainers = append(image.recentContainers, id); len(image.recentContainers) > maxTrackedContainers {
			image.recentContainers = image.recentContainers[1:]
		}
		b.dirty = true
	}
	return image
}

func (b *Baselines) evictImage(el *list.Element) {
	if digest, ok := b.lru.Remove(el).(string); ok {
		delete(b.images, digest)
	}
}

// recordObservation keeps a fact and tells whether it is new. Where there is no room, the least of those that are still new makes
// it, or, while all is learnt, the one that was seen least; so a flood of facts drives out itself and nothing else.
func (b *Baselines) recordObservation(facts map[string]Observation, full *bool, f *overflow, most int, name string, image *Image, now time.Time) (fresh bool) {
	fact, known := facts[name]
	if !known {
		if len(facts) >= most {
			b.recordOverflow(full, f, now.Sub(image.FirstSeen))
			if now.Before(f.retryEvictionAt) || !b.evictObservations(facts, most/10, image, now) {
				if !now.Before(f.retryEvictionAt) {
					f.retryEvictionAt = now.Add(time.Minute)
				}
				return now.Sub(image.FirstSeen) >= b.options.LearningPeriod
			}
		}
		fact.FirstSeen = now
	}
	fact.LastSeen = now
	fact.Count++
	facts[name] = fact
	b.dirty = true
	return b.isNovel(fact, image, now)
}

// recordOverflow counts the parts of the time of learning with more than is kept.
func (b *Baselines) recordOverflow(full *bool, f *overflow, at time.Duration) {
	part := b.options.LearningPeriod / learningIntervals
	if at >= b.options.LearningPeriod || f.intervals > 0 && at-f.lastInterval < part {
		return
	}
	f.lastInterval = at
	f.intervals++
	*full = *full || f.intervals >= maxOverflowIntervals
}

// evictObservations forgets several facts at once, so that a flood of them costs little.
func (b *Baselines) evictObservations(facts map[string]Observation, several int, image *Image, now time.Time) bool {
	learning := now.Sub(image.FirstSeen) < b.options.LearningPeriod
	var names []string
	for name, fact := range facts {
		if learning || b.isNovel(fact, image, now) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(cmp.Compare(facts[x].Count, facts[y].Count), facts[x].LastSeen.Compare(facts[y].LastSeen))
	})
	for _, name := range names[:min(several, len(names))] {
		delete(facts, name)
	}
	return len(names) > 0
}

// isNovel tells whether a fact came after the time of learning, and not long ago.
func (b *Baselines) isNovel(f Observation, image *Image, now time.Time) bool {
	return f.FirstSeen.Sub(image.FirstSeen) >= b.options.LearningPeriod && now.Sub(f.FirstSeen) < b.options.NoveltyPeriod
}

// DestinationKey is what is remembered of where a connection goes. Addresses of pods and services change with every rollout, so of
// the private ones only the port is kept; of the others the network around them, since services move within theirs.
func DestinationKey(n sensors.Network) string {
	addr, err := netip.ParseAddr(n.Address)
	if err != nil || addr.IsLoopback() {
		return ""
	}
	port := strconv.Itoa(int(n.Port))
	switch {
	case addr.IsLinkLocalUnicast():
		return addr.String() + ":" + port // the metadata service has no neighbours
	case addr.IsPrivate():
		return "private:" + port
	}
	bits := 24
	if addr.Is6() {
		bits = 48
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	return network.String() + ":" + port
}

func formatContainerCount(n int) string { // with its article
	if n == 1 {
		return "one container"
	}
	return "the " + strconv.Itoa(n) + " containers"
}

// formatAge is a duration as people say it.
func formatAge(d time.Duration) string {
	switch days := int(d.Hours() / 24); {
	case days > 1:
		return strconv.Itoa(days) + " days"
	case days == 1:
		return "a day"
	case d >= 2*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " hours"
	case d >= 2*time.Minute:
		return strconv.Itoa(int(d.Minutes())) + " minutes"
	}
	return duration.FormatApprox(d)
}

// Images gives a copy of all that was learnt, the one that was seen last first.
func (b *Baselines) Images() []Image {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Image, 0, len(b.images))
	for el := b.lru.Front(); el != nil; el = el.Next() {
		digest, _ := el.Value.(string)
		image := *b.images[digest]
		image.Executables, image.Destinations = maps.Clone(image.Executables), maps.Clone(image.Destinations)
		image.recentContainers, image.lruElement = nil, nil
		out = append(out, image)
	}
	return out
}
