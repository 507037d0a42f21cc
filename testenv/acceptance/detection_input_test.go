package acceptance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/testenv/harness"
	"stanch/workflows/playbook"
)

const testSourceToken = "a-token-of-32-characters-for-tests"

// detectionEndpoint is a stand that takes foreign detections.
type detectionEndpoint struct {
	*harness.Harness
	url string
}

func newDetectionEndpoint(t *testing.T) *detectionEndpoint {
	t.Helper()
	address := harness.FreePort(t)
	s := harness.New(t, stanchBinary, harness.Options{
		Config: autoContainConfig +
			"sources: [{ name: elsewhere, token_file: DIR/token }]\n", Playbooks: isolatePlaybook(10 * time.Minute),
		Args: []string{"--listen", address},
	})
	require.NoError(t, os.WriteFile(filepath.Join(s.ConfigDir, "token"), []byte(testSourceToken), 0o600))
	s.StartAndWait(t)
	return &detectionEndpoint{s, "http://" + address}
}

func (d *detectionEndpoint) post(c *http.Client, path, token string, body []byte) (int, string, error) {
	r, err := http.NewRequest(
		http.MethodPost,
		d.url+path,
		bytes.NewReader(body),
	) //nolint:noctx // the client has a timeout
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

func thirdPartyDetection(container string, n int) []byte {
	raw, err := json.Marshal(sensors.Detection{
		ID: fmt.Sprintf("elsewhere-%d", n), Rule: "odd", Title: "odd", Severity: sensors.SeverityLow, Confidence: 0.3,
		Objective: sensors.ObjectiveDiscovery,
		Time:      time.Now(), Event: sensors.Event{Kind: sensors.KindExec, Container: sensors.Container{ID: container}},
	})
	if err != nil {
		panic(err)
	}
	return raw
}

func TestMalformedDetectionsAreRefused(t *testing.T) {
	d := newDetectionEndpoint(t)
	good := string(thirdPartyDetection("aa11", 1))
	for name, c := range map[string]struct {
		path, token, body string
		want              int
	}{
		"no token":                 {"/v1/detections", "", good, 401},
		"a wrong token":            {"/v1/detections", testSourceToken + "x", good, 401},
		"no token at Falco's door": {"/v1/falco", "", "{}", 401},
		"no JSON":                  {"/v1/detections", testSourceToken, "{", 400},
		"an unknown field":         {"/v1/detections", testSourceToken, strings.Replace(good, `"rule"`, `"rules"`, 1), 400},
		"a list":                   {"/v1/detections", testSourceToken, "[" + good + "]", 400},
		"nothing":                  {"/v1/detections", testSourceToken, "", 400},
		"too large": {
			"/v1/detections", testSourceToken, `{"id":"` + strings.Repeat("x", 10<<20) + `"}`,
			413,
		},
		"deeply nested": {"/v1/falco", testSourceToken, strings.Repeat(`{"a":`, 20_000) + "1" +
			strings.Repeat("}", 20_000), 400},
		"no container": {"/v1/detections", testSourceToken, strings.Replace(good, `"id":"aa11"`, `"name":"x"`,
			1), 422},
		"an unknown severity": {"/v1/detections", testSourceToken, strings.Replace(good, `"low"`, `"odd"`, 1), 422},
		"a confidence of two": {"/v1/detections", testSourceToken, strings.Replace(good, `0.3`, `2`, 1), 422},
		"Falco's about no container": {
			"/v1/falco", testSourceToken,
			`{"rule":"r","priority":"Critical","output_fields":{"container.id":"host"}}`, 400,
		},
		"another method's path": {"/v1/incidents", testSourceToken, good, 404},
	} {
		code, text, err := d.post(&http.Client{Timeout: 10 * time.Second}, c.path, c.token, []byte(c.body))
		if c.want == 413 && err != nil {
			continue // the server hung up in the middle of it
		}
		require.NoError(t, err, name)
		require.Equal(t, c.want, code, "%s: %s", name, text)
	}
	var all []playbooks.Incident
	require.NoError(t, d.Get("/v1/incidents", &all))
	for _, in := range all {
		require.NotEqual(t, "elsewhere", in.Trigger.Source)
	}
}

func TestTenThousandDuplicatesAreOneIncident(t *testing.T) {
	const n, connections = 10_000, 50
	d := newDetectionEndpoint(t)
	container := d.ContainerPrefix + "flood"
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: connections,
		MaxConnsPerHost:     connections,
	}}
	before := d.ResidentBytes(t)
	peak := before
	work := make(chan int)
	var group sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	began := time.Now()
	for range connections {
		group.Go(func() {
			for i := range work {
				code, _, err := d.post(client, "/v1/detections", testSourceToken, thirdPartyDetection(container, i))
				if err != nil {
					code = -1
				}
				mu.Lock()
				codes[code]++
				mu.Unlock()
			}
		})
	}
	for i := range n {
		if i%1000 == 0 {
			peak = max(peak, d.ResidentBytes(t))
		}
		work <- i
	}
	close(work)
	group.Wait()
	took := time.Since(began)
	peak = max(peak, d.ResidentBytes(t))
	require.Equal(t, map[int]int{http.StatusAccepted: n}, codes)
	d.WaitForIncident(t, container, 20*time.Second, "all are counted",
		func(in playbooks.Incident) bool { return in.TotalDetections == n })
	found, err := d.IncidentsAbout(container)
	require.NoError(t, err)
	require.Len(t, found, 1, "one incident")
	t.Logf("%d in %s (%.0f a second), memory grew from %d to %d MiB", n, took.Round(time.Millisecond), n/took.Seconds(),
		before>>20, peak>>20)
	require.Less(t, peak-before, int64(150<<20), "bounded memory")
}

func TestSecondStanchOnSameDataIsRefused(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{Config: autoContainConfig})
	_, stderr, code := s.Run(t, "up", "--kubeconfig", "none", "--no-sensor")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "another Stanch instance is using it")
	require.False(t, s.WaitForExit(0), "the first goes on")
}

func TestPauseStopsNewContainmentsOnly(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: isolatePlaybook(10 * time.Minute),
	})
	first, _ := startIsolatedContainer(t, s)
	_, stderr, code := s.Run(t, "pause")
	require.Zero(t, code, stderr)

	c := s.NewContainer(t)
	c.StartAttack(t)
	in := s.WaitForIncident(t, c.ID, 20*time.Second, "its playbook ended", hasPlaybookEnded)
	steps := in.Playbooks[0].Steps
	require.Equal(t, playbooks.OutcomeSucceeded, steps[0].Outcome, "evidence is still taken")
	require.NotEmpty(t, in.Evidence)
	require.Equal(t, playbooks.OutcomeRefused, steps[1].Outcome)
	require.Contains(t, steps[1].Reason, playbooks.ReasonPaused)
	for _, command := range [][]string{{"incidents"}, {"incidents", in.ID}, {"leases"}, {"status"}} {
		stdout, _, _ := s.Run(t, command...)
		require.Contains(t, stdout, "PAUSED since ", "%v", command)
	}
	require.True(t, c.WaitForTraffic(time.Second), "it is not held")
	require.True(t, first.IsSilent(200*time.Millisecond), "what was held stays held")

	stdout, stderr, code := s.Run(t, "resume")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "1 containment of an open incident was refused while paused")
	require.Contains(t, stdout, in.ID+"  pod.isolate on container ")
	stdout, _, _ = s.Run(t, "incidents", in.ID)
	require.Contains(t, stdout, "refused     pod.isolate on container ", "it is not forgotten")
	require.NotContains(t, stdout, "PAUSED")
	third, _ := startIsolatedContainer(t, s)
	_, stderr, code = s.Run(t, "release", "--all")
	require.Zero(t, code, stderr)
	for _, c := range []*harness.Container{first, third} {
		s.WaitForIncident(t, c.ID, 20*time.Second, "undone", isUndone)
		require.True(t, c.WaitForTraffic(2*time.Second))
	}
	require.Empty(t, s.ActiveLocks(t))
}

func TestDenialOfApproverCountsAndOfStrangerDoesNot(t *testing.T) {
	s := harness.Start(
		t,
		stanchBinary,
		harness.Options{
			Playbooks: isolatePlaybook(10 * time.Minute),
			Config: autoContainConfig + `scopes: [{ name: host, namespaces: ["*"], phase: 2, confidence: 0.99, approvers: { groups: [sre], timeout: 1m } }]
people: [{ name: ann, uid: 0, groups: [sre] }, { name: bob, uid: 65533, groups: [devs] }]
`,
		},
	)
	c := s.NewContainer(t)
	c.StartAttack(t)
	var asked playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		var pending []playbook.ApprovalRequest
		if s.Get("/v1/pending", &pending) != nil || len(pending) == 0 {
			return false
		}
		asked = pending[0]
		return true
	}, 20*time.Second, 50*time.Millisecond)

	// The socket's folder is closed to strangers; when it is opened, the kernel still says who speaks.
	bin := filepath.Join(s.ConfigDir, "stanch")
	require.NoError(t, exec.Command("cp", stanchBinary, bin).Run()) //nolint:noctx // at once
	stranger := func(uid uint32, args ...string) string {
		p := exec.Command(bin, append(args, "--data", s.DataDir)...) //nolint:noctx // at once
		p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := p.CombinedOutput()
		require.Error(t, err, "%s", out)
		return string(out)
	}
	require.NoError(t, os.Chmod(s.ConfigDir, 0o755))
	require.Contains(t, stranger(65534, "approve", asked.IncidentID), "permission denied")
	require.NoError(t, os.Chmod(s.DataDir, 0o755))
	require.NoError(t, os.Chmod(s.SocketPath(), 0o666))
	for _, args := range [][]string{{"approve", asked.IncidentID}, {"release", "--all"}, {"pause"}, {"resume"}} {
		require.Contains(t, stranger(65534, args...), "unknown user id", args)
	}
	require.Contains(t, stranger(65534, "drill"), "only root")
	require.Contains(t, stranger(65533, "approve", asked.IncidentID), "is not allowed to vote")
	require.Empty(t, s.ActiveLocks(t))

	_, stderr, code := s.Run(t, "deny", asked.IncidentID, "--reason", "a known build")
	require.Zero(t, code, stderr)
	in := s.WaitForIncident(t, c.ID, 20*time.Second, "its playbook ended", hasPlaybookEnded)
	require.Equal(t, playbooks.OutcomeDenied, in.Playbooks[0].Steps[1].Outcome)
	require.Contains(t, in.Playbooks[0].Steps[1].Reason, "ann denied it. a known build")
	require.Empty(t, s.ActiveLocks(t))
	require.True(t, c.WaitForTraffic(time.Second))
}

// Secrets in an attacker's command line are redacted before they leave the node: no file of Stanch contains them.
func TestSecretInCommandLineIsNeverStored(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: isolatePlaybook(10 * time.Minute),
	})
	secrets := []string{"hunter2-PLANTED", "AKIAIOSFODNNPLANTED7", "ghp_PLANTED0123456789abcdefghijklmnopqrs"}
	c := s.NewContainer(t)
	c.StartAttack(t, "xmrig", "--password="+secrets[0], "--url", "stratum+tcp://user:"+secrets[0]+"@pool.example:3333",
		secrets[1], "--token", secrets[2])
	in := s.WaitForIncident(t, c.ID, 30*time.Second, "held, with evidence",
		func(in playbooks.Incident) bool { return isIsolated(in) && hasPlaybookEnded(in) })
	require.NotEmpty(t, in.Evidence)
	story, err := json.Marshal(in)
	require.NoError(t, err)
	require.Contains(t, string(story), "xmrig", "the attack itself is told")
	s.Stop()
	searched := 0
	places := map[string][]byte{"the log": []byte(s.Output()), "the incident": story}
	require.NoError(t, filepath.WalkDir(s.DataDir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		places[path] = raw
		return err
	}))
	for place, raw := range places {
		for _, secret := range secrets {
			require.NotContains(t, string(raw), secret, "%s holds a planted secret", place)
		}
		searched += len(raw)
	}
	require.Greater(t, searched, 100_000, "Temporal's file was searched too")
}
