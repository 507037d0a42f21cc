// Package foreign turns what other sensors report into detections: Falco, Tetragon, Tracee and KubeArmor, each in the
// shapes of its own documentation, and the audit logs of Kubernetes and AWS into events.
//
// It is pure. It refuses to look anything up, and leaves empty what a report does not say: who has a cluster completes
// it. It refuses to guess silently: where a rule is not known, a reason says that the objective is a guess. Numbers keep
// every digit. What it reads is bounded in size, depth, number and length before anything is made of it, because most of
// it was written by whoever is being reported.
package foreign

import (
	"errors"
	"time"

	"stanch/sensors"
)

// Report is what one record of another sensor says: exactly one of its parts is set.
type Report struct {
	Alert *sensors.Detection
	// Health is about the sensor itself: it lost events, or it says that it lives.
	Health *Health
	// Telemetry: the record is no alert (every process that starts, every file that is opened) and nothing is made of it.
	Telemetry bool
}

// Health is what a sensor says about itself.
type Health struct {
	Source string    `json:"source"`
	Node   string    `json:"node,omitempty"`
	Time   time.Time `json:"time,omitzero"`
	// Dropped is how many events were lost.
	Dropped uint64 `json:"dropped,omitempty"`
	// Unread is how many of its events came and could not be read; the gateway says so, and not the source.
	Unread uint64 `json:"unread,omitempty"`
	// Total: Dropped counts since the sensor started, and not since it last said so.
	Total   bool   `json:"total,omitempty"`
	Message string `json:"message,omitempty"`
}

// The kinds of source: what a source is configured with, and the door that it posts to.
const (
	KindFalco     = "falco" // Falco's http_output, and Falcosidekick
	KindTetragon  = "tetragon"
	KindTracee    = "tracee"
	KindKubeArmor = "kubearmor"
)

// Decoder reads one record.
type Decoder func(raw []byte) (Report, error)

// Kinds lists the kinds of source that have a decoder.
func Kinds() []string { return []string{KindFalco, KindTetragon, KindTracee, KindKubeArmor} }

// DecoderOf is the decoder of a kind; nil for an unknown one.
func DecoderOf(kind string) Decoder {
	switch kind {
	case KindFalco:
		return Falco
	case KindTetragon:
		return Tetragon
	case KindTracee:
		return Tracee
	case KindKubeArmor:
		return KubeArmor
	}
	return nil
}

// errNoContainer refuses what Stanch could do nothing about.
var errNoContainer = errors.New("the alert is about no container")

func health(h Health) (Report, error) {
	h.Message = shorten(h.Message, maxSentence)
	if len(h.Node) > maxIdentity {
		return Report{}, tooLong("node", h.Node)
	}
	if !plausible(h.Time) {
		h.Time = time.Time{}
	}
	h.Time = h.Time.UTC()
	return Report{Health: &h}, nil
}
