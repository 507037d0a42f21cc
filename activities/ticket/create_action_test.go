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
	"stanch/testenv/step"
	stand "stanch/testenv/ticket"
)

// trackerCase is a tracker and its stand-in.
type trackerCase struct {
	name       string
	startFake  func(testing.TB) *stand.Server
	newTracker func(ticket.TrackerConfig) ticket.Tracker
}

var trackerCases = []trackerCase{
	{"GitHub", stand.GitHub, func(w ticket.TrackerConfig) ticket.Tracker { return ticket.NewGitHub(w) }},
	{"GitLab", stand.GitLab, func(w ticket.TrackerConfig) ticket.Tracker { return ticket.NewGitLab(w) }},
	{"Jira", stand.Jira, func(w ticket.TrackerConfig) ticket.Tracker { return ticket.NewJira(w) }},
}

func trackerConfig(s *stand.Server) ticket.TrackerConfig {
	return ticket.TrackerConfig{URL: s.URL, Project: s.Project, Token: stand.Token, JiraUser: stand.User}
}

func (p trackerCase) newCreateAction(s *stand.Server) *ticket.CreateAction {
	return &ticket.CreateAction{Tracker: p.newTracker(trackerConfig(s)), Labels: []string{"security"}}
}

func forEachTracker(t *testing.T, test func(t *testing.T, p trackerCase, s *stand.Server)) {
	for _, p := range trackerCases {
		t.Run(p.name, func(t *testing.T) { test(t, p, p.startFake(t)) })
	}
}

func decodeOutputs(t *testing.T, ran step.Ran) (out ticket.CreateOutputs) {
	t.Helper()
	require.NoError(t, ran.Err)
	require.True(t, ran.Outcome.HasOutputs(), ran.Reason)
	require.NoError(t, json.Unmarshal(ran.Outputs, &out))
	return out
}

func renderedIssue(t *testing.T, i stand.Issue) stand.Seen {
	t.Helper()
	out, err := i.Read()
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
		_, err := s.StoreArtifact(t.Context(), step.Incident, "pod.logs", "pod:1", activities.Artifact{Name: name, Data: []byte(name)}, time.Now())
		require.NoError(t, err)
	}
	return manifestStore{s, a.Keys()}
}

func TestATicketHoldsWhatIsKnownAndAnchorsTheEvidence(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		a := p.newCreateAction(s)
		r := newManifestStore(t, "processes.json", "web.log")
		a.Manifests = r
		ran := step.Run(t, a, step.Brief(), ticket.CreateParams{Labels: []string{"team:shop", "two words"}})
		out := decodeOutputs(t, ran)
		require.Equal(t, playbooks.OutcomeChanged, ran.Outcome)
		require.Empty(t, ran.Reason)
		require.True(t, out.Created)
		require.NotEmpty(t, out.URL)
		require.Len(t, s.Issues(), 1)
		i := s.Issues()[0]
		require.Equal(t, step.Incident+": shop/Deployment/web in test", i.Title)
		require.Equal(t, []string{"stanch-" + step.Incident, "security", "team:shop", "two-words"}, i.Labels)
		page := renderedIssue(t, i)
		for _, fact := range []string{step.Incident, "2026-11-23T12:00:00Z", "shop/Deployment/web", "registry.example/web:1", "sha256:1234", "node-a", "0.93", "A miner was started in shop/Deployment/web."} {
			require.Contains(t, page.Code[0], fact)
		}
		lines, _, err := r.Manifest(step.Incident)
		require.NoError(t, err)
		require.Equal(t, []string{"name", "action", "target", "sha256", "bytes"}, page.Table[0])
		first := lines[0].Entry.Evidence
		require.Equal(t, []string{"processes.json", "pod.logs", "pod:1", first.SHA256, "14"}, page.Table[1])
		require.Len(t, page.Table, 3)
		require.Contains(t, strings.Join(page.Code, "\n"), activities.LastLineHash(lines))
		require.Empty(t, page.Alive)
	})
}

func TestOneIncidentHasOneTicket(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		first := decodeOutputs(t, step.Run(t, p.newCreateAction(s), step.Brief(), ticket.CreateParams{}))
		again := step.Run(t, p.newCreateAction(s), step.Brief(), ticket.CreateParams{Title: "of a second playbook, in another process"})
		require.Equal(t, playbooks.OutcomeUnchanged, again.Outcome)
		require.Equal(t, ticket.CreateOutputs{URL: first.URL, ID: first.ID}, decodeOutputs(t, again))
		require.Len(t, s.Issues(), 1)
		other := step.Brief()
		other.ID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAX"
		require.True(t, decodeOutputs(t, step.Run(t, p.newCreateAction(s), other, ticket.CreateParams{})).Created)
		require.Len(t, s.Issues(), 2)
	})
}

// The process dies when the tracker has the issue and nobody here knows.
func TestARetryAfterADeathMakesNoSecondTicket(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		a := p.newCreateAction(s)
		deaths := 0
		a.Failpoint = func(point string) {
			if point == "ticket/opened" && deaths == 0 {
				deaths++
				panic("the process died")
			}
		}
		ran := step.Run(t, a, step.Brief(), ticket.CreateParams{})
		require.Equal(t, 1, deaths)
		require.Equal(t, playbooks.OutcomeUnchanged, ran.Outcome)
		require.False(t, decodeOutputs(t, ran).Created)
		require.Len(t, s.Issues(), 1)
	})
}

// The search knows of an issue only later: what this process opened it remembers.
func TestTwoPlaybooksAtOnceMakeOneTicket(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		s.Blind(true)
		a := p.newCreateAction(s)
		done := make(chan activities.Observation)
		for range 8 {
			go func() {
				seen, err := a.Observe(t.Context(), activities.Request{Action: "create", IncidentRef: step.Brief()})
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

// Jira's search lags: after an answer that tells nothing it is not asked again at once.
func TestJiraIsGivenTimeToFindWhatItMayHaveMade(t *testing.T) {
	s := stand.Jira(t)
	p := trackerCases[2]
	s.Next(nil, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGatewayTimeout) })
	ran := step.Run(t, p.newCreateAction(s), step.Brief(), ticket.CreateParams{})
	require.True(t, decodeOutputs(t, ran).Created)
	require.GreaterOrEqual(t, ran.Took, 30*time.Second)
}

const hostileText = "x```\n````\n@root #1 !2 ~3 %4 $5 &6\n/close\n/assign @root\n[click](https://evil.example) https://evil.example www.evil.example\n" +
	"{noformat}[~accountid:123] {code} OPS-1 |a|b|\n<img src=x onerror=alert(1)><script>1</script>\n\u202egnp.exe token=hunter2hunter2\n```"

func TestMarkupOfAnAttackerStaysText(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		in := step.Brief()
		in.Summary, in.Workload.Name, in.Workload.Image, in.Cluster = "process "+hostileText, "web`|@root "+hostileText, hostileText, "[t](https://evil.example)"
		a := p.newCreateAction(s)
		a.Manifests = newManifestStore(t, "a`|@root #1 https://evil.example ``` |.log\n/close", hostileText)
		decodeOutputs(t, step.Run(t, a, in, ticket.CreateParams{Title: "see " + hostileText, Labels: []string{"a,b", "@root", hostileText}}))
		i := s.Issues()[0]
		page := renderedIssue(t, i)
		require.Empty(t, page.Alive)
		require.NotContains(t, page.Prose, "root")
		require.NotContains(t, page.Prose, "evil")
		require.Len(t, page.Table, 3)
		for _, row := range page.Table {
			require.Len(t, row, 5)
		}
		require.Contains(t, page.Code[0], "@root #1 !2 ~3 %4 $5 &6\n/close\n", "and is there to be read")
		require.Contains(t, page.Code[0], "·gnp.exe token=[redacted]")
		require.Empty(t, i.InTitle(), i.Title)
		require.NotContains(t, fmt.Sprint(i), "hunter2")
		for _, l := range i.Labels {
			require.NotRegexp(t, `[,@ \n]`, l)
			require.LessOrEqual(t, len([]rune(l)), 50)
		}
	})
}

func TestATicketFitsItsTracker(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		in := step.Brief()
		in.Summary = strings.Repeat("long ", 10_000)
		names := make([]string, 90)
		for n := range names {
			names[n] = fmt.Sprintf("%d-%s", n, strings.Repeat("n", 200))
		}
		a := p.newCreateAction(s)
		a.Manifests = newManifestStore(t, names...)
		decodeOutputs(t, step.Run(t, a, in, ticket.CreateParams{Title: strings.Repeat("t", 1000)}))
		i := s.Issues()[0]
		require.Less(t, len([]rune(i.Title)), 255)
		page := renderedIssue(t, i)
		require.Contains(t, page.Prose, "30 more pieces are in the manifest.")
		var text strings.Builder
		text.WriteString(page.Prose + strings.Join(page.Code, ""))
		for _, row := range page.Table {
			text.WriteString(strings.Join(row, ""))
		}
		require.Less(t, len([]rune(text.String())), 32767)
	})
}

func TestAManifestThatDoesNotHoldIsSaid(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		a := p.newCreateAction(s)
		r := newManifestStore(t, "a.log")
		r.keys = signer.New(t).Keys()
		a.Manifests = r
		decodeOutputs(t, step.Run(t, a, step.Brief(), ticket.CreateParams{}))
		require.Contains(t, strings.Join(renderedIssue(t, s.Issues()[0]).Code, "\n"), "The manifest does not hold:\nmanifest of "+step.Incident+", line 1")
	})
}

func TestRateLimitsAreKept(t *testing.T) {
	soon := func(d time.Duration) string { return fmt.Sprint(time.Now().Add(d).Unix()) }
	for name, c := range map[string]struct {
		status int
		header map[string]string
		least  time.Duration
	}{
		"Retry-After":               {http.StatusTooManyRequests, map[string]string{"Retry-After": "90"}, 90 * time.Second},
		"GitHub's secondary limit":  {http.StatusForbidden, map[string]string{"Retry-After": "70"}, 70 * time.Second},
		"GitHub's primary limit":    {http.StatusForbidden, map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": soon(2 * time.Minute)}, 110 * time.Second},
		"GitLab's RateLimit-Reset":  {http.StatusTooManyRequests, map[string]string{"RateLimit-Reset": soon(2 * time.Minute)}, 110 * time.Second},
		"a limit that says nothing": {http.StatusTooManyRequests, nil, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
				limit := func(w http.ResponseWriter, _ *http.Request) {
					for k, v := range c.header {
						w.Header().Set(k, v)
					}
					w.WriteHeader(c.status)
				}
				s.Next(limit, nil, limit) // the search, and then the opening
				ran := step.Run(t, p.newCreateAction(s), step.Brief(), ticket.CreateParams{})
				require.True(t, decodeOutputs(t, ran).Created)
				require.GreaterOrEqual(t, ran.Took, 2*c.least)
				require.Less(t, ran.Took, 2*c.least+30*time.Second)
				require.Len(t, s.Issues(), 1)
			})
		})
	}
}

func TestANoIsARefusalThatSaysWhy(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		s.Next(nil, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"message":"Resource not accessible by ` + stand.Token + `","errorMessages":["no right \u001b[31m"]}`))
		})
		ran := step.Run(t, p.newCreateAction(s), step.Brief(), ticket.CreateParams{})
		require.NoError(t, ran.Err)
		require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
		require.Contains(t, ran.Reason, p.name+" answered 403: Resource not accessible by [redacted]; no right ·[31m")
		require.Len(t, s.Calls(), 2)
	})
}

func TestAWrongTokenIsToldWithoutTheToken(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		w := trackerConfig(s)
		w.Token = "wrong-Tr0ub4dor"
		ran := step.Run(t, &ticket.CreateAction{Tracker: p.newTracker(w)}, step.Brief(), ticket.CreateParams{})
		require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
		require.Contains(t, ran.Reason, "answered 401")
		require.NotContains(t, ran.Reason, w.Token)
		w.URL = "http://127.0.0.1:1/" + w.Token
		ran = step.Run(t, &ticket.CreateAction{Tracker: p.newTracker(w)}, step.Brief(), ticket.CreateParams{})
		require.ErrorContains(t, ran.Err, "connection refused")
		require.NotContains(t, ran.Err.Error(), w.Token)
	})
}

func TestATokenGoesNowhereElse(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		elsewhere := p.startFake(t)
		s.Next(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.RequestURI(), http.StatusTemporaryRedirect)
		})
		ran := step.Run(t, p.newCreateAction(s), step.Brief(), ticket.CreateParams{})
		require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
		require.Contains(t, ran.Reason, "redirects are not followed")
		require.Empty(t, elsewhere.Calls())
	})
}

func TestATokenThatMayNotSetLabelsIsSaid(t *testing.T) {
	for _, p := range trackerCases[:2] { // Jira takes all or nothing
		s := p.startFake(t)
		s.DropLabels()
		ran := step.Run(t, p.newCreateAction(s), step.Brief(), ticket.CreateParams{})
		require.True(t, decodeOutputs(t, ran).Created)
		require.Contains(t, ran.Reason, "dropped the label stanch-"+step.Incident)
	}
}

func TestAnAnswerThatIsNoneOpensNothing(t *testing.T) {
	forEachTracker(t, func(t *testing.T, p trackerCase, s *stand.Server) {
		junk := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`<html>log in first</html>`)) }
		s.Next(junk, junk, junk)
		require.ErrorContains(t, step.Run(t, p.newCreateAction(s), step.Brief(), ticket.CreateParams{}).Err, "not one that the tracker's documentation describes")
		require.Empty(t, s.Issues())
	})
}

func TestWithoutAConfigurationItIsRefused(t *testing.T) {
	ran := step.Run(t, &ticket.CreateAction{}, step.Brief(), ticket.CreateParams{})
	require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
	require.Equal(t, "no tickets are configured: add `ticket:` to stanch.yaml", ran.Reason)
	in := step.Brief()
	in.ID = `INC-1" OR project = "HR`
	ran = step.Run(t, trackerCases[2].newCreateAction(stand.Jira(t)), in, ticket.CreateParams{})
	require.Contains(t, ran.Reason, "is not an incident's id")
}

// Nothing that stands in code gets out of it, whatever it is.
func FuzzMarkdown(f *testing.F) {
	for _, s := range []string{hostileText, "```", "`", "|", "\\|", "a\n```\n# x", "~~~\n@root", "\\`@root"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		d := ticket.TicketDraft{IncidentID: step.Incident, Facts: [][2]string{{"workload", strings.ReplaceAll(a, "\n", " ")}}, Summary: a + "@zqroot", EvidenceRows: []ticket.EvidenceRow{{b + "@zqroot", "x", "y", "z", "1"}}, ManifestEntries: 1, ManifestHead: "abc"}
		page, err := stand.Issue{Body: ticket.Markdown(d)}.Read()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(page.Prose, "zqroot") || len(page.Table) != 2 || len(page.Table[1]) != 5 {
			t.Fatalf("%q\n%q", page.Prose, page.Table)
		}
	})
}
