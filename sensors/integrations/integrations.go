// Package integrations decodes the output of other sensors: alerts of Falco, Tetragon, Tracee and KubeArmor into
// detections, in the formats that these projects document, and the audit logs of Kubernetes and AWS into events.
//
// It is pure. It refuses to look anything up: fields that a record does not contain stay empty, and callers with
// access to the cluster complete them. It refuses to guess silently: if a rule is unknown, a reason says that the
// objective is a guess. It preserves every digit of a number. It limits size, depth, number and length before it
// decodes a record, because most of a record is controlled by the attacker that it is about.
package integrations

import (
	"errors"
	"time"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// DecodedRecord is the content of one record of another sensor. Exactly one of its fields is set.
type DecodedRecord struct {
	Alert *sensors.Detection
	// Health is set if the record is about the sensor itself: it lost events, or it reports that it runs.
	Health *SensorHealth
	// Telemetry reports whether the record is not an alert (such as every started process). It is then ignored.
	Telemetry bool
}

// SensorHealth is what a sensor reports about itself.
type SensorHealth struct {
	Source string    `json:"source"`
	Node   string    `json:"node,omitempty"`
	Time   time.Time `json:"time,omitzero"`
	// Dropped is the number of lost events.
	Dropped uint64 `json:"dropped,omitempty"`
	// UndecodableEvents is the number of events that could not be decoded. The gateway counts them, not the sensor.
	UndecodableEvents uint64 `json:"unread,omitempty"`
	// DroppedIsCumulative reports whether Dropped counts since the sensor started, and not since its last report.
	DroppedIsCumulative bool   `json:"total,omitempty"`
	Message             string `json:"message,omitempty"`
}

// The source kinds, as used in the configuration of a source and in the path of its endpoint.
const (
	SourceFalco     = "falco" // Falco's http_output and Falcosidekick
	SourceTetragon  = "tetragon"
	SourceTracee    = "tracee"
	SourceKubeArmor = "kubearmor"
)

// Decoder decodes one record of at most MaxRecordBytes. It is safe for concurrent use.
type Decoder func(raw []byte) (DecodedRecord, error)

// integrations is the table of the sensors whose alerts Stanch decodes: a new one is its file and a line here.
func integrations() []integration {
	return []integration{
		{SourceFalco, DecodeFalco},
		{SourceTetragon, DecodeTetragon},
		{SourceTracee, DecodeTracee},
		{SourceKubeArmor, DecodeKubeArmor},
	}
}

// integration is a source kind with its decoder.
type integration struct {
	kind   string
	decode Decoder
}

// SourceKinds returns the source kinds that have a decoder.
func SourceKinds() []string {
	var kinds []string
	for _, i := range integrations() {
		kinds = append(kinds, i.kind)
	}
	return kinds
}

// DecoderForKind returns the decoder of a source kind, or nil for an unknown kind.
func DecoderForKind(kind string) Decoder {
	for _, i := range integrations() {
		if i.kind == kind {
			return i.decode
		}
	}
	return nil
}

// errNotAboutContainer rejects an alert that Stanch cannot act on.
var errNotAboutContainer = errors.New("the alert does not identify a container")

func healthRecord(h SensorHealth) (DecodedRecord, error) {
	h.Message = truncate.Bytes(h.Message, maxMessageBytes)
	if len(h.Node) > maxIdentifierBytes {
		return DecodedRecord{}, tooLongError("node", h.Node)
	}
	if !isPlausibleTime(h.Time) {
		h.Time = time.Time{}
	}
	h.Time = h.Time.UTC()
	return DecodedRecord{Health: &h}, nil
}
