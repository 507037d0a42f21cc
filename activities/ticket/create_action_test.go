package ticket_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/activities/ticket"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/testenv/signer"
	"stanch/testenv/steprunner"
	stand "stanch/testenv/ticket"
)

// trackerCase is a tracker and its fake server.
type trackerCase struct {
	name       string
	startFake  func(testing.TB) *stand.FakeTracker
	newTracker func(ticket.TrackerConfig) ticket.Tracker
}

var trackerCases = []trackerCase{
	{"GitHub", stand.StartGitHub, func(w ticket.TrackerConfig) ticket.Tracker { return ticket.NewGitHub(w) }},
	{"GitLab", stand.StartGitLab, func(w ticket.TrackerConfig) ticket.Tracker { return ticket.NewGitLab(w) }},
	{"Jira", stand.StartJira, func(w ticket.TrackerConfig) ticket.Tracker { return ticket.NewJira(w) }},
}

func trackerConfig(s *stand.FakeTracker) ticket.TrackerConfig {
	return ticket.TrackerConfig{URL: s.URL, Project: s.Project, Token: stand.Token, JiraUser: stand.User}
}

func (p trackerCase) newCreateAction(s *stand.FakeTracker) *ticket.CreateAction {
	return &ticket.CreateAction{Tracker: p.newTracker(trackerConfig(s)), Labels: []string{"security"}}
}

func forEachTracker(t *testing.T, test func(t *testing.T, p trackerCase, s *stand.FakeTracker)) {
	for _, p := range trackerCases {
		t.Run(p.name, func(t *testing.T) { test(t, p, p.startFake(t)) })
	}
}

func decodeOutputs(t *testing.T, ran steprunner.StepResult) (out ticket.CreateOutputs) {
	t.Helper()
	require.NoError(t, ran.Err)
	require.True(t, ran.Outcome.HasOutputs(), ran.Reason)
	require.NoError(t, json.Unmarshal(ran.Outputs, &out))
	return out
}

func renderedIssue(t *testing.T, i stand.Issue) stand.RenderedIssue {
	t.Helper()
	out, err := i.Render()
	require.NoError(t, err)
	return out
}

// manifestStore is a real store with its keys.
type manifestStore struct {
	*activities.EvidenceStore
	keys attestation.Keyring
}

func (r manifestStore) Manifest(incident string) ([]activities.ManifestLine, []activities.IntegrityFinding, error) {
	return r.EvidenceStore.Manifest(incident, r.keys)
}

func newManifestStore(t *testing.T, names ...string) manifestStore {
	t.Helper()
	a := signer.New(t)
	s := &activities.EvidenceStore{Dir: t.TempDir(), Authority: a}
	for _, name := range names {
		_, err := s.StoreArtifact(steprunner.IncidentID, "pod.logs", "pod:1", activities.Artifact{
			Name: name,
			Data: []byte(name),
		}, time.Now())
		require.NoError(t, err)
	}
	return manifestStore{s, a.Keyring()}
}

func TestTicketContainsFactsAndManifestHead(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		a := p.newCreateAction(s)
		r := newManifestStore(t, "processes.json", "web.log")
		a.Manifests = r
		ran := steprunner.Run(t, a, steprunner.NewIncidentRef(),
			ticket.CreateParams{Labels: []string{"team:shop", "two words"}})
		out := decodeOutputs(t, ran)
		require.Equal(t, playbooks.OutcomeSucceeded, ran.Outcome)
		require.Empty(t, ran.Reason)
		require.True(t, out.Created)
		require.NotEmpty(t, out.URL)
		require.Len(t, s.Issues(), 1)
		i := s.Issues()[0]
		require.Equal(t, steprunner.IncidentID+": shop/Deployment/web in test", i.Title)
		require.Equal(t, []string{"stanch-" + steprunner.IncidentID, "security", "team:shop", "two-words"}, i.Labels)
		page := renderedIssue(t, i)
		for _, fact := range []string{
			steprunner.IncidentID, "2026-11-23T12:00:00Z", "shop/Deployment/web",
			"registry.example/web:1", "sha256:1234", "node-a", "0.93", "A miner was started in shop/Deployment/web.",
		} {
			require.Contains(t, page.CodeBlocks[0], fact)
		}
		lines, _, err := r.Manifest(steprunner.IncidentID)
		require.NoError(t, err)
		require.Equal(t, []string{"name", "action", "target", "sha256", "bytes"}, page.TableRows[0])
		first := lines[0].Entry.Evidence
		require.Equal(t, []string{"processes.json", "pod.logs", "pod:1", first.SHA256, "14"}, page.TableRows[1])
		require.Len(t, page.TableRows, 3)
		require.Contains(t, strings.Join(page.CodeBlocks, "\n"), activities.LastLineHash(lines))
		require.Empty(t, page.ActiveContent)
	})
}

func TestOneIncidentHasOneTicket(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		first := decodeOutputs(t, steprunner.Run(t, p.newCreateAction(s), steprunner.NewIncidentRef(), ticket.CreateParams{}))
		again := steprunner.Run(t, p.newCreateAction(s), steprunner.NewIncidentRef(),
			ticket.CreateParams{Title: "of a second playbook, in another process"})
		require.Equal(t, playbooks.OutcomeUnchanged, again.Outcome)
		require.Equal(t, ticket.CreateOutputs{URL: first.URL, ID: first.ID}, decodeOutputs(t, again))
		require.Len(t, s.Issues(), 1)
		other := steprunner.NewIncidentRef()
		other.ID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAX"
		require.True(t, decodeOutputs(t, steprunner.Run(t, p.newCreateAction(s), other, ticket.CreateParams{})).Created)
		require.Len(t, s.Issues(), 2)
	})
}

// The process dies after the tracker created the issue and before anything here recorded it.
func TestRetryAfterCrashCreatesNoSecondTicket(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		a := p.newCreateAction(s)
		deaths := 0
		a.Failpoint = func(point string) {
			if point == "ticket/opened" && deaths == 0 {
				deaths++
				panic("the process died")
			}
		}
		ran := steprunner.Run(t, a, steprunner.NewIncidentRef(), ticket.CreateParams{})
		require.Equal(t, 1, deaths)
		require.Equal(t, playbooks.OutcomeUnchanged, ran.Outcome)
		require.False(t, decodeOutputs(t, ran).Created)
		require.Len(t, s.Issues(), 1)
	})
}

// The search finds an issue only later: this process remembers the issues that it opened.
func TestConcurrentPlaybooksCreateOneTicket(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		s.SetSearchLagging(true)
		a := p.newCreateAction(s)
		done := make(chan activities.Observation)
		for range 8 {
			go func() {
				seen, err := a.Observe(t.Context(), activities.Request{Action: "create", IncidentRef: steprunner.NewIncidentRef()})
				if err != nil {
					seen.MissingNote = err.Error()
				}
				done <- seen
			}()
		}
		created := 0
		for range 8 {
			if out, ok := (<-done).Outputs.(ticket.CreateOutputs); ok && out.Created {
				created++
			}
		}
		require.Equal(t, 1, created)
		require.Len(t, s.Issues(), 1)
	})
}

// Jira's search lags: after an inconclusive response, creation is not retried at once.
func TestJiraCreationWaitsForSearchIndex(t *testing.T) {
	s := stand.StartJira(t)
	p := trackerCases[2]
	s.RespondNext(nil, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGatewayTimeout) })
	ran := steprunner.Run(t, p.newCreateAction(s), steprunner.NewIncidentRef(), ticket.CreateParams{})
	require.True(t, decodeOutputs(t, ran).Created)
	require.GreaterOrEqual(t, ran.RetryWait, 30*time.Second)
}

const hostileText = "x```\n````\n@root #1 !2 ~3 %4 $5 &6\n/close\n/assign @root\n[click](https://evil.example) https://evil.example www.evil.example\n" +
	"{noformat}[~accountid:123] {code} OPS-1 |a|b|\n<img src=x onerror=alert(1)><script>1</script>\n\u202egnp.exe token=hunter2hunter2\n```"

func TestAttackerMarkupIsEscaped(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		in := steprunner.NewIncidentRef()
		in.Summary, in.Workload.Name, in.Workload.Image, in.Cluster = "process "+hostileText, "web`|@root "+hostileText,
			hostileText, "[t](https://evil.example)"
		a := p.newCreateAction(s)
		a.Manifests = newManifestStore(t, "a`|@root #1 https://evil.example ``` |.log\n/close", hostileText)
		decodeOutputs(t, steprunner.Run(t, a, in, ticket.CreateParams{
			Title:  "see " + hostileText,
			Labels: []string{"a,b", "@root", hostileText},
		}))
		i := s.Issues()[0]
		page := renderedIssue(t, i)
		require.Empty(t, page.ActiveContent)
		require.NotContains(t, page.Prose, "root")
		require.NotContains(t, page.Prose, "evil")
		require.Len(t, page.TableRows, 3)
		for _, row := range page.TableRows {
			require.Len(t, row, 5)
		}
		require.Contains(t, page.CodeBlocks[0], "@root #1 !2 ~3 %4 $5 &6\n/close\n", "and is there to be read")
		require.Contains(t, page.CodeBlocks[0], "·gnp.exe token=[redacted]")
		require.Empty(t, i.ActiveContentInTitle(), i.Title)
		require.NotContains(t, fmt.Sprint(i), "hunter2")
		for _, l := range i.Labels {
			require.NotRegexp(t, `[,@ \n]`, l)
			require.LessOrEqual(t, len([]rune(l)), 50)
		}
	})
}

func TestTicketFitsSizeLimits(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		in := steprunner.NewIncidentRef()
		in.Summary = strings.Repeat("long ", 10_000)
		names := make([]string, 90)
		for n := range names {
			names[n] = fmt.Sprintf("%d-%s", n, strings.Repeat("n", 200))
		}
		a := p.newCreateAction(s)
		a.Manifests = newManifestStore(t, names...)
		decodeOutputs(t, steprunner.Run(t, a, in, ticket.CreateParams{Title: strings.Repeat("t", 1000)}))
		i := s.Issues()[0]
		require.Less(t, len([]rune(i.Title)), 255)
		page := renderedIssue(t, i)
		require.Contains(t, page.Prose, "The manifest has 30 more artifacts.")
		var text strings.Builder
		text.WriteString(page.Prose + strings.Join(page.CodeBlocks, ""))
		for _, row := range page.TableRows {
			text.WriteString(strings.Join(row, ""))
		}
		require.Less(t, len([]rune(text.String())), 32767)
	})
}

func TestTicketReportsInvalidManifest(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		a := p.newCreateAction(s)
		r := newManifestStore(t, "a.log")
		r.keys = signer.New(t).Keyring()
		a.Manifests = r
		decodeOutputs(t, steprunner.Run(t, a, steprunner.NewIncidentRef(), ticket.CreateParams{}))
		require.Contains(t, strings.Join(renderedIssue(t, s.Issues()[0]).CodeBlocks, "\n"),
			"The manifest is invalid:\nmanifest of "+steprunner.IncidentID+", line 1")
	})
}

func TestRateLimitsAreHonored(t *testing.T) {
	soon := func(d time.Duration) string { return fmt.Sprint(time.Now().Add(d).Unix()) }
	for name, c := range map[string]struct {
		status int
		header map[string]string
		least  time.Duration
	}{
		"Retry-After":              {http.StatusTooManyRequests, map[string]string{"Retry-After": "90"}, 90 * time.Second},
		"GitHub's secondary limit": {http.StatusForbidden, map[string]string{"Retry-After": "70"}, 70 * time.Second},
		"GitHub's primary limit": {http.StatusForbidden, map[string]string{
			"X-RateLimit-Remaining": "0",
			"X-RateLimit-Reset":     soon(2 * time.Minute),
		}, 110 * time.Second},
		"GitLab's RateLimit-Reset": {
			http.StatusTooManyRequests,
			map[string]string{"RateLimit-Reset": soon(2 * time.Minute)},
			110 * time.Second,
		},
		"a limit that says nothing": {http.StatusTooManyRequests, nil, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
				limit := func(w http.ResponseWriter, _ *http.Request) {
					for k, v := range c.header {
						w.Header().Set(k, v)
					}
					w.WriteHeader(c.status)
				}
				s.RespondNext(limit, nil, limit) // the search, and then the creation
				ran := steprunner.Run(t, p.newCreateAction(s), steprunner.NewIncidentRef(), ticket.CreateParams{})
				require.True(t, decodeOutputs(t, ran).Created)
				require.GreaterOrEqual(t, ran.RetryWait, 2*c.least)
				require.Less(t, ran.RetryWait, 2*c.least+30*time.Second)
				require.Len(t, s.Issues(), 1)
			})
		})
	}
}

func TestTrackerErrorsAreRefusalsWithReason(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		s.RespondNext(nil, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"message":"Resource not accessible by ` + stand.Token +
				`","errorMessages":["no right \u001b[31m"]}`))
		})
		ran := steprunner.Run(t, p.newCreateAction(s), steprunner.NewIncidentRef(), ticket.CreateParams{})
		require.NoError(t, ran.Err)
		require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
		require.Contains(t, ran.Reason, p.name+" returned 403: Resource not accessible by [redacted]; no right ·[31m")
		require.Len(t, s.Requests(), 2)
	})
}

func TestWrongTokenErrorOmitsToken(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		w := trackerConfig(s)
		w.Token = "wrong-Tr0ub4dor"
		ran := steprunner.Run(t, &ticket.CreateAction{Tracker: p.newTracker(w)}, steprunner.NewIncidentRef(),
			ticket.CreateParams{})
		require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
		require.Contains(t, ran.Reason, "returned 401")
		require.NotContains(t, ran.Reason, w.Token)
		w.URL = "http://127.0.0.1:1/" + w.Token
		ran = steprunner.Run(t, &ticket.CreateAction{Tracker: p.newTracker(w)}, steprunner.NewIncidentRef(),
			ticket.CreateParams{})
		require.ErrorContains(t, ran.Err, "connection refused")
		require.NotContains(t, ran.Err.Error(), w.Token)
	})
}

func TestTokenIsNotSentToRedirectTarget(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		elsewhere := p.startFake(t)
		s.RespondNext(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.RequestURI(), http.StatusTemporaryRedirect)
		})
		ran := steprunner.Run(t, p.newCreateAction(s), steprunner.NewIncidentRef(), ticket.CreateParams{})
		require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
		require.Contains(t, ran.Reason, "redirects are not followed")
		require.Empty(t, elsewhere.Requests())
	})
}

func TestIgnoredLabelIsReported(t *testing.T) {
	for _, p := range trackerCases[:2] { // Jira rejects the complete request
		s := p.startFake(t)
		s.DropLabels()
		ran := steprunner.Run(t, p.newCreateAction(s), steprunner.NewIncidentRef(), ticket.CreateParams{})
		require.True(t, decodeOutputs(t, ran).Created)
		require.Contains(t, ran.Reason, "ignored the label stanch-"+steprunner.IncidentID)
	}
}

func TestInvalidSearchResponseOpensNoTicket(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.FakeTracker) {
		junk := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`<html>log in first</html>`)) }
		s.RespondNext(junk, junk, junk)
		require.ErrorContains(t, steprunner.Run(t, p.newCreateAction(s), steprunner.NewIncidentRef(),
			ticket.CreateParams{}).Err, "does not have the documented form")
		require.Empty(t, s.Issues())
	})
}

func TestTicketWithoutConfigurationIsRefused(t *testing.T) {
	ran := steprunner.Run(t, &ticket.CreateAction{}, steprunner.NewIncidentRef(), ticket.CreateParams{})
	require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
	require.Equal(t, "tickets are not configured; add `ticket:` to stanch.yaml", ran.Reason)
	in := steprunner.NewIncidentRef()
	in.ID = `INC-1" OR project = "HR`
	ran = steprunner.Run(t, trackerCases[2].newCreateAction(stand.StartJira(t)), in, ticket.CreateParams{})
	require.Contains(t, ran.Reason, "invalid incident id")
}

// Text in code blocks never ends the block, whatever it contains.
func FuzzMarkdown(f *testing.F) {
	for _, s := range []string{hostileText, "```", "`", "|", "\\|", "a\n```\n# x", "~~~\n@root", "\\`@root"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		d := ticket.Draft{
			IncidentID: steprunner.IncidentID,
			Facts:      [][2]string{{"workload", strings.ReplaceAll(a, "\n", " ")}}, Summary: a + "@zqroot",
			EvidenceRows: []ticket.EvidenceRow{{b + "@zqroot", "x", "y", "z", "1"}}, ManifestEntries: 1, ManifestHead: "abc",
		}
		page, err := stand.Issue{Body: ticket.Markdown(d)}.Render()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(page.Prose, "zqroot") || len(page.TableRows) != 2 || len(page.TableRows[1]) != 5 {
			t.Fatalf("%q\n%q", page.Prose, page.TableRows)
		}
	})
}
