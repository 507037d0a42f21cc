// Package foreign turns what other sensors report into detections: Falco, Tetragon, Tracee and DecodeKubeArmor, each in the
// shapes of its own documentation, and the audit logs of Kubernetes and AWS into events.
//
// It is pure. It refuses to look anything up, and leaves empty what a report does not say: who has a cluster completes
// it. It refuses to guess silently: where a rule is not known, a reason says that the objective is a guess. Numbers keep
// every digit. What it reads is bounded in size, depth, number and length before anything is made of it, because most of
// it was written by whoever is being reported.
package integrations

import (
	"errors"
	"time"

	"stanch/sensors"
)

// DecodedRecord is what one record of another sensor says: exactly one of its parts is set.
type DecodedRecord struct {
	Alert *sensors.Detection
	// Health is about the sensor itself: it lost events, or it says that it lives.
	Health *SensorHealth
	// Telemetry: the record is no alert (every process that starts, every file that is opened) and nothing is made of it.
	Telemetry bool
}

// SensorHealth is what a sensor says about itself.
type SensorHealth struct {
	Source string    `json:"source"`
	Node   string    `json:"node,omitempty"`
	Time   time.Time `json:"time,omitzero"`
	// Dropped is how many events were lost.
	Dropped uint64 `json:"dropped,omitempty"`
	// UndecodableEvents is how many of its events came and could not be read; the gateway says so, and not the source.
	UndecodableEvents uint64 `json:"unread,omitempty"`
	// DroppedIsCumulative: Dropped counts since the sensor started, and not since it last said so.
	DroppedIsCumulative bool   `json:"total,omitempty"`
	Message             string `json:"message,omitempty"`
}

// The kinds of source: what a source is configured with, and the door that it posts to.
const (
	SourceFalco     = "falco" // Falco's http_output, and Falcosidekick
	SourceTetragon  = "tetragon"
	SourceTracee    = "tracee"
	SourceKubeArmor = "kubearmor"
)

// Decoder reads one record.
type Decoder func(raw []byte) (DecodedRecord, error)

// SourceKinds lists the kinds of source that have a decoder.
func SourceKinds() []string {
	return []string{SourceFalco, SourceTetragon, SourceTracee, SourceKubeArmor}
}

// DecoderForKind is the decoder of a kind; nil for an unknown one.
func DecoderForKind(kind string) Decoder {
	switch kind {
	case SourceFalco:
		return DecodeFalco
	case SourceTetragon:
		return DecodeTetragon
	case SourceTracee:
		return DecodeTracee
	case SourceKubeArmor:
		return DecodeKubeArmor
	}
	return nil
}

// errNotAboutContainer refuses what Stanch could do nothing about.
var errNotAboutContainer = errors.New("the alert is about no container")

func healthRecord(h SensorHealth) (DecodedRecord, error) {
	h.Message = truncateForDisplay(h.Message, maxMessageBytes)
	if len(h.Node) > maxIdentifierBytes {
		return DecodedRecord{}, tooLongError("node", h.Node)
	}
	if !isPlausibleTime(h.Time) {
		h.Time = time.Time{}
	}
	h.Time = h.Time.UTC()
	return DecodedRecord{Health: &h}, nil
}
