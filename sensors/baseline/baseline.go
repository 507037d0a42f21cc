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
	// Learn is how long an image is watched before anything can be new. Default 24 h.
	Learn time.Duration
	// Settle is how long what is new stays new. Default 24 h.
	Settle time.Duration
	// Forget is how long an image is kept that no container has any more. Default 60 days.
	Forget time.Duration
	// Images bounds how many are kept; the one that was not seen for the longest time goes first. Default 500.
	Images int
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Bounds of what is kept of one image.
const (
	maxExecutables  = 2000
	maxDestinations = 500
	maxContainers   = 64 // counted one by one; above, the number only grows
	maxText         = 512
)

// Image is what was learnt of one image. Its JSON is what `stanch-sensor baseline export` writes.
type Image struct {
	Digest string    `json:"digest"`
	Name   string    `json:"image,omitempty"` // as it was called last
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
	// Containers is in how many containers it was watched.
	Containers   int             `json:"containers"`
	Executables  map[string]Fact `json:"executables,omitempty"`
	Destinations map[string]Fact `json:"destinations,omitempty"`
	// Full: while it was learnt there were always more executables or destinations than are kept, so nothing can be called
	// new. One flood of them, such as a scan makes, is not enough.
	FullExecutables  bool `json:"full_executables,omitempty"`
	FullDestinations bool `json:"full_destinations,omitempty"`

	executableFloods, destinationFloods floods

	recent []string // containers, the newest last
	place  *list.Element
}

// floods are the parts of the time of learning in which there was more than is kept.
type floods struct {
	parts  int
	last   time.Duration
	noRoom time.Time // until then nobody looks for room: there was none a moment ago
}

// The time of learning has 24 parts; what overflows in a quarter of them always does.
const (
	learningParts = 24
	alwaysParts   = 6
)

// Fact is something that containers of an image did.
type Fact struct {
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count uint64    `json:"count"`
}

// Baselines are what was learnt on one node. Its methods may be called from several goroutines.
type Baselines struct {
	opt Options

	mu     sync.Mutex
	images map[string]*Image
	order  *list.List // of digests, the most recently seen in front
	dirty  bool
}

// New makes baselines that know nothing.
func New(o Options) *Baselines {
	if o.Learn <= 0 {
		o.Learn = 24 * time.Hour
	}
	if o.Settle <= 0 {
		o.Settle = 24 * time.Hour
	}
	if o.Forget <= 0 {
		o.Forget = 60 * 24 * time.Hour
	}
	if o.Images <= 0 {
		o.Images = 500
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Baselines{opt: o, images: map[string]*Image{}, order: list.New()}
}

// Judge says how usual an event is for its image, and learns from it. What has no digest is not judged.
func (b *Baselines) Judge(e *sensors.Event) sensors.Baseline {
	digest := e.Container.ImageDigest
	if digest == "" || len(digest) > maxText || e.Kind != sensors.KindExec && e.Kind != sensors.KindConnect {
		return sensors.Baseline{}
	}
	now := b.opt.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	image := b.image(digest, e, now)
	verdict := sensors.Baseline{Learnt: now.Sub(image.First) >= b.opt.Learn}
	var what, name string
	var fresh bool
	switch e.Kind {
	case sensors.KindExec:
		name = e.Process.Exe
		foreign := e.Process.UpperLayer || e.Process.Memfd || e.Process.Deleted
		what, fresh = "executed", true
		if name != "" && len(name) <= maxText && !foreign && !e.Process.Entered {
			fresh = b.learn(image.Executables, &image.FullExecutables, &image.executableFloods, maxExecutables, name, image, now)
		} else if known, ok := image.Executables[name]; ok {
			fresh = b.unsettled(known, image, now)
		}
		verdict.NewExe = fresh && !image.FullExecutables
		fresh = verdict.NewExe
	case sensors.KindConnect:
		name = Destination(e.Network)
		if name == "" {
			return verdict
		}
		what = "connected to"
		fresh = b.learn(image.Destinations, &image.FullDestinations, &image.destinationFloods, maxDestinations, name, image, now)
		verdict.NewDestination = fresh && !image.FullDestinations
		fresh = verdict.NewDestination
	default: // sorted out above
	}
	if verdict.Learnt && fresh {
		verdict.Reason = fmt.Sprintf("Never %s in %s of this image that this node watched for %s: %s.", what, containers(image.Containers), age(now.Sub(image.First)), name)
	}
	return verdict
}

// image finds or makes an image's entry. The caller holds b.mu.
func (b *Baselines) image(digest string, e *sensors.Event, now time.Time) *Image {
	image := b.images[digest]
	if image == nil {
		image = &Image{Digest: digest, First: now, Executables: map[string]Fact{}, Destinations: map[string]Fact{}}
		b.images[digest] = image
		image.place = b.order.PushFront(digest)
		for b.order.Len() > b.opt.Images {
			b.drop(b.order.Back())
		}
		b.dirty = true
	} else {
		b.order.MoveToFront(image.place)
	}
	if len(e.Container.Image) <= maxText {
		image.Name = e.Container.Image
	}
	image.Last = now
	if id := e.Container.ID; !slices.Contains(image.recent, id) {
		image.Containers++
		if image.recent = append(image.recent, id); len(image.recent) > maxContainers {
			image.recent = image.recent[1:]
		}
		b.dirty = true
	}
	return image
}

func (b *Baselines) drop(el *list.Element) {
	if digest, ok := b.order.Remove(el).(string); ok {
		delete(b.images, digest)
	}
}

// learn keeps a fact and tells whether it is new. Where there is no room, the least of those that are still new makes
// it, or, while all is learnt, the one that was seen least; so a flood of facts drives out itself and nothing else.
func (b *Baselines) learn(facts map[string]Fact, full *bool, f *floods, most int, name string, image *Image, now time.Time) (fresh bool) {
	fact, known := facts[name]
	if !known {
		if len(facts) >= most {
			b.flooded(full, f, now.Sub(image.First))
			if now.Before(f.noRoom) || !b.makeRoom(facts, most/10, image, now) {
				if !now.Before(f.noRoom) {
					f.noRoom = now.Add(time.Minute)
				}
				return now.Sub(image.First) >= b.opt.Learn
			}
		}
		fact.First = now
	}
	fact.Last = now
	fact.Count++
	facts[name] = fact
	b.dirty = true
	return b.unsettled(fact, image, now)
}

// flooded counts the parts of the time of learning with more than is kept.
func (b *Baselines) flooded(full *bool, f *floods, at time.Duration) {
	part := b.opt.Learn / learningParts
	if at >= b.opt.Learn || f.parts > 0 && at-f.last < part {
		return
	}
	f.last = at
	f.parts++
	*full = *full || f.parts >= alwaysParts
}

// makeRoom forgets several facts at once, so that a flood of them costs little.
func (b *Baselines) makeRoom(facts map[string]Fact, several int, image *Image, now time.Time) bool {
	learning := now.Sub(image.First) < b.opt.Learn
	var names []string
	for name, fact := range facts {
		if learning || b.unsettled(fact, image, now) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(cmp.Compare(facts[x].Count, facts[y].Count), facts[x].Last.Compare(facts[y].Last))
	})
	for _, name := range names[:min(several, len(names))] {
		delete(facts, name)
	}
	return len(names) > 0
}

// unsettled tells whether a fact came after the time of learning, and not long ago.
func (b *Baselines) unsettled(f Fact, image *Image, now time.Time) bool {
	return f.First.Sub(image.First) >= b.opt.Learn && now.Sub(f.First) < b.opt.Settle
}

// Destination is what is remembered of where a connection goes. Addresses of pods and services change with every rollout, so of
// the private ones only the port is kept; of the others the network around them, since services move within theirs.
func Destination(n sensors.Network) string {
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

func containers(n int) string { // with its article
	if n == 1 {
		return "one container"
	}
	return "the " + strconv.Itoa(n) + " containers"
}

// age is a duration as people say it.
func age(d time.Duration) string {
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
	return duration.About(d)
}

// Images gives a copy of all that was learnt, the one that was seen last first.
func (b *Baselines) Images() []Image {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Image, 0, len(b.images))
	for el := b.order.Front(); el != nil; el = el.Next() {
		digest, _ := el.Value.(string)
		image := *b.images[digest]
		image.Executables, image.Destinations = maps.Clone(image.Executables), maps.Clone(image.Destinations)
		image.recent, image.place = nil, nil
		out = append(out, image)
	}
	return out
}
