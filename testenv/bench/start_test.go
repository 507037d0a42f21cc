package bench

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/testenv/harness"
)

// detachTime is more than the kernel needs to detach the programs of a sensor that has stopped.
const detachTime = 3 * time.Second

// From the start of the process until the local API answers, and until the sensor of this machine is connected; and
// from SIGTERM until the process is gone. A restart starts while the kernel still detaches the programs of the last
// process.
func BenchmarkStartAndStop(b *testing.B) {
	s := harness.New(b, stanchBinary, harness.Options{Config: "phase: 2\n"})
	s.StartAndWait(b) // creates the keys and the database, once per installation
	s.Stop()
	var answers, watches, restarted, stopped measurementsMS
	for b.Loop() {
		time.Sleep(detachTime)
		answering, watching := measureStart(b, s)
		answers, watches = append(answers, answering), append(watches, watching)
		stopped = append(stopped, measureStop(b, s))
		_, watching = measureStart(b, s)
		restarted = append(restarted, watching)
		stopped = append(stopped, measureStop(b, s))
	}
	reportPercentiles(b, "start_to_api", answers)
	reportPercentiles(b, "start_to_watching", watches)
	reportPercentiles(b, "restart_to_watching", restarted)
	reportPercentiles(b, "stop", stopped)
}

// measureStart starts Stanch and returns when the local API answered and when the sensor was connected.
func measureStart(b *testing.B, s *harness.Harness) (answering, watching float64) {
	b.Helper()
	began := time.Now()
	s.StartProcess(b)
	require.Eventually(b, func() bool {
		var nodes map[string]any
		if s.Get("/v1/nodes", &nodes) != nil {
			return false
		}
		if answering == 0 {
			answering = toMilliseconds(time.Since(began))
		}
		watching = toMilliseconds(time.Since(began))
		return len(nodes) > 0
	}, time.Minute, 2*time.Millisecond, "Stanch did not start")
	return answering, watching
}

func measureStop(b *testing.B, s *harness.Harness) float64 {
	b.Helper()
	began := time.Now()
	require.NoError(b, syscall.Kill(s.PID(), syscall.SIGTERM))
	require.True(b, s.WaitForExit(30*time.Second), "Stanch did not stop")
	return toMilliseconds(time.Since(began))
}
