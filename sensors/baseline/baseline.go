// Package baseline learns what containers of an image usually do: which programs they execute and where they connect,
// by image digest. "Unusual for this image" is therefore a measured statement.
//
// It is pure and bounded. It refuses to call an event unusual before the image was observed long enough. It also
// refuses to accept new behavior at once: after the learning period, a new observation stays novel for a day, so that
// an attack does not train the baseline. It never learns a program that is not part of the image.
package baseline

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"stanch/sensors"
	"stanch/sensors/duration"
)

// Options configures the learning. The zero value suits a cluster.
type Options struct {
	// LearningPeriod is how long an image is observed before an event can be unusual. The default is 24 h.
	LearningPeriod time.Duration
	// NoveltyPeriod is how long a new observation stays novel. The default is 24 h.
	NoveltyPeriod time.Duration
	// Retention is how long an image without containers is kept. The default is 60 days.
	Retention time.Duration
	// MaxImages is the maximum number of images. The least recently seen image is evicted first. The default is 500.
	MaxImages int
	// Now is the clock. The default is time.Now.
	Now func() time.Time
}

// Limits for one image.
const (
	maxExecutablesPerImage  = 2000
	maxDestinationsPerImage = 500
	maxTrackedContainers    = 64 // tracked individually; beyond that, a container may be counted twice
	maxTextBytes            = 512
)

// Image is the baseline of one image. `stanch-sensor baseline export` writes it as JSON.
type Image struct {
	Digest    string    `json:"digest"`
	Name      string    `json:"image,omitempty"` // the last known name
	FirstSeen time.Time `json:"first"`
	LastSeen  time.Time `json:"last"`
	// ContainerCount is the number of containers that were observed.
	ContainerCount int                    `json:"container_count"`
	Executables    map[string]Observation `json:"executables,omitempty"`
	Destinations   map[string]Observation `json:"destinations,omitempty"`
	// ExecutablesOverflowed and DestinationsOverflowed report whether the image continuously exceeded the limit while
	// it was learned. Nothing can be called unusual then. One burst, such as a scan, is not enough.
	ExecutablesOverflowed  bool `json:"executables_overflowed,omitempty"`
	DestinationsOverflowed bool `json:"destinations_overflowed,omitempty"`

	executableOverflow, destinationOverflow overflow

	recentContainers []string // container IDs, the newest last
}

// overflow counts the intervals of the learning period in which the limit was exceeded.
type overflow struct {
	intervals       int
	lastInterval    time.Duration
	retryEvictionAt time.Time // no eviction is attempted before this time, because the last one found nothing to evict
}

// The learning period has 24 intervals. An overflow in 6 of them counts as continuous.
const (
	learningIntervals    = 24
	maxOverflowIntervals = 6
)

// Observation is one executable or destination of an image.
type Observation struct {
	FirstSeen time.Time `json:"first"`
	LastSeen  time.Time `json:"last"`
	Count     uint64    `json:"count"`
}

// Baselines are the baselines of one node. It is safe for concurrent use.
type Baselines struct {
	options Options

	mu     sync.Mutex
	images *simplelru.LRU[string, *Image] // by digest
	dirty  bool
}

// New returns empty baselines.
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
	images, _ := simplelru.NewLRU[string, *Image](o.MaxImages, nil) // fails only without a size
	return &Baselines{options: o, images: images}
}

// Compare compares an event with the baseline of its image, and adds it to the baseline. It returns the zero value for
// an event without an image digest and for kinds other than exec and connect.
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
			fresh = b.recordObservation(observations{
				image, image.Executables, &image.ExecutablesOverflowed, &image.executableOverflow, maxExecutablesPerImage,
			}, name, now)
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
		fresh = b.recordObservation(observations{
			image, image.Destinations, &image.DestinationsOverflowed, &image.destinationOverflow, maxDestinationsPerImage,
		}, name, now)
		verdict.NewDestination = fresh && !image.DestinationsOverflowed
		fresh = verdict.NewDestination
	default: // excluded above
	}
	if verdict.LearningComplete && fresh {
		verdict.Reason = fmt.Sprintf("Never %s in %s of this image that this node watched for %s: %s.", what,
			formatContainerCount(image.ContainerCount), formatAge(now.Sub(image.FirstSeen)), name)
	}
	return verdict
}

// findOrAddImage returns the entry of an image, and adds it if necessary. The caller holds b.mu.
func (b *Baselines) findOrAddImage(digest string, e *sensors.Event, now time.Time) *Image {
	image, known := b.images.Get(digest)
	if !known {
		image = &Image{
			Digest: digest, FirstSeen: now, Executables: map[string]Observation{},
			Destinations: map[string]Observation{},
		}
		b.images.Add(digest, image)
		b.dirty = true
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

// observations are the executables or the destinations of an image, with their limit.
type observations struct {
	image    *Image
	facts    map[string]Observation
	full     *bool
	overflow *overflow
	max      int
}

// recordObservation records an observation and reports whether it is novel. If the limit is reached, it evicts the
// least frequent observations among those that are still novel or, during the learning period, among all. A burst of
// new observations therefore evicts only itself.
func (b *Baselines) recordObservation(of observations, name string, now time.Time) (fresh bool) {
	facts, f, image := of.facts, of.overflow, of.image
	fact, known := facts[name]
	if !known {
		if len(facts) >= of.max {
			b.recordOverflow(of.full, f, now.Sub(image.FirstSeen))
			if now.Before(f.retryEvictionAt) || !b.evictObservations(facts, of.max/10, image, now) {
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

// recordOverflow records an overflow in the current interval of the learning period.
func (b *Baselines) recordOverflow(full *bool, f *overflow, at time.Duration) {
	part := b.options.LearningPeriod / learningIntervals
	if at >= b.options.LearningPeriod || f.intervals > 0 && at-f.lastInterval < part {
		return
	}
	f.lastInterval = at
	f.intervals++
	*full = *full || f.intervals >= maxOverflowIntervals
}

// evictObservations evicts several observations at once, so that a burst of new ones is cheap. It returns false if
// none can be evicted.
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

// isNovel reports whether an observation began after the learning period and within the novelty period.
func (b *Baselines) isNovel(f Observation, image *Image, now time.Time) bool {
	return f.FirstSeen.Sub(image.FirstSeen) >= b.options.LearningPeriod && now.Sub(f.FirstSeen) < b.options.NoveltyPeriod
}

// DestinationKey returns the key under which a destination is learned, or "" for loopback and invalid addresses. The
// addresses of pods and services change with every rollout, so the key of a private address contains only the port.
// The key of a public address contains its /24 or /48 network, because services move within their network.
func DestinationKey(n sensors.Network) string {
	addr, err := netip.ParseAddr(n.Address)
	if err != nil || addr.IsLoopback() {
		return ""
	}
	port := strconv.Itoa(int(n.Port))
	switch {
	case addr.IsLinkLocalUnicast():
		return addr.String() + ":" + port // the metadata service has an address of its own
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

// formatAge returns a duration in words.
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

// Images returns a copy of all baselines, the most recently seen image first.
func (b *Baselines) Images() []Image {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Image, 0, b.images.Len())
	for _, known := range slices.Backward(b.images.Values()) {
		image := *known
		image.Executables, image.Destinations = maps.Clone(image.Executables), maps.Clone(image.Destinations)
		image.recentContainers = nil
		out = append(out, image)
	}
	return out
}
