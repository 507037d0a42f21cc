package baseline

import (
	"stanch/sensors"
)

// novelDoubtFactor is the factor for the remaining doubt (1 - confidence) of a detection whose event is unusual for
// its image.
const novelDoubtFactor = 0.7

// AdjustConfidence raises the confidence of a detection whose event is unusual for its image, and adds the reason. It
// never lowers the confidence: a shell that an image always runs for its probes is the same file as a shell that an
// attacker uses.
func AdjustConfidence(d *sensors.Detection) {
	b := d.Event.Baseline
	if b.Reason == "" {
		return
	}
	d.Confidence = 1 - (1-d.Confidence)*novelDoubtFactor
	d.Reasons = append(d.Reasons, b.Reason)
}
