package baseline

import (
	"stanch/sensors"
)

// novelDoubtFactor is what is left of a detection's doubt when its event is new for its image.
const novelDoubtFactor = 0.7

// AdjustConfidence makes a detection surer whose event is new for its image, and says so. It never makes one less sure: a shell that an
// image always runs, for its probes, is the same file as the one that somebody types into.
func AdjustConfidence(d *sensors.Detection) {
	b := d.Event.Baseline
	if b.Reason == "" {
		return
	}
	d.Confidence = 1 - (1-d.Confidence)*novelDoubtFactor
	d.Reasons = append(d.Reasons, b.Reason)
}
