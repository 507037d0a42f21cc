package notify_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities/notify"
	"stanch/playbooks"
	"stanch/testenv/steprunner"
	"stanch/testenv/webhook"
)

const webhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func newWebhookAction(t *testing.T, r *webhook.Receiver, secret string) *notify.WebhookAction {
	t.Helper()
	key, err := notify.ParseSigningKey(secret)
	require.NoError(t, err)
	return &notify.WebhookAction{
		Receivers:    map[string]notify.WebhookReceiver{"pager": {URL: r.URL, SigningKey: key}},
		ManifestHead: func(string) string { return "abc123" },
	}
}

func pagerParams(text string) notify.WebhookParams {
	return notify.WebhookParams{ReceiverName: "pager", Text: text}
}

func TestSignatureFollowsStandardWebhooks(t *testing.T) {
	key, err := notify.ParseSigningKey(webhookSecret)
	require.NoError(t, err)
	require.Equal(t, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		notify.SignWebhook(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)))
}

func TestWebhookDeliversIncidentAndText(t *testing.T) {
	r := webhook.Start(t, webhookSecret)
	ran := steprunner.Run(t, newWebhookAction(t, r, webhookSecret), steprunner.NewIncidentRef(),
		pagerParams("it was \x1b[31misolated; token=hunter2hunter2"))
	require.NoError(t, ran.Err)
	require.Equal(t, playbooks.OutcomeSucceeded, ran.Outcome)
	require.Len(t, r.Accepted(), 1)
	var m map[string]any
	require.NoError(t, json.Unmarshal(r.Accepted()[0].Body, &m))
	require.Equal(t, "it was ·[31misolated; token=[redacted]", m["text"])
	require.Equal(t, float64(1), m["version"])
	require.Equal(t, "stanch.incident.notify", m["type"])
	require.Equal(t, steprunner.IncidentID, m["incident"])
	require.Equal(t, "abc123", m["manifest_head"])
	for _, key := range []string{"grouping_key", "cluster", "summary", "scope", "workload", "confidence", "at"} {
		require.NotEmpty(t, m[key], key)
	}
}

func TestWebhookWithoutTextSendsSummary(t *testing.T) {
	r := webhook.Start(t, webhookSecret)
	require.NoError(t, steprunner.Run(t, newWebhookAction(t, r, webhookSecret), steprunner.NewIncidentRef(),
		pagerParams("")).Err)
	var m notify.WebhookMessage
	require.NoError(t, json.Unmarshal(r.Accepted()[0].Body, &m))
	require.Equal(t, steprunner.NewIncidentRef().Summary, m.Text)
}

func TestWebhookWithWrongSecretIsRefused(t *testing.T) {
	r := webhook.Start(t, webhookSecret)
	other := "whsec_" + strings.Repeat("QUFB", 10)
	ran := steprunner.Run(t, newWebhookAction(t, r, other), steprunner.NewIncidentRef(), pagerParams("x"))
	require.NoError(t, ran.Err)
	require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
	require.Equal(t, "webhook pager returned 401", ran.Reason)
	require.Empty(t, r.Accepted())
	require.Len(t, r.Deliveries(), 1, "what is refused is not tried again")
}

// The receiver processed the message and the response was lost: the repetition has the same id and is dropped.
func TestRetriedWebhookHasSameMessageID(t *testing.T) {
	r := webhook.Start(t, webhookSecret)
	cut := func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = c.Close()
		}
	}
	r.RespondNextAfterAccept(cut)
	r.RespondNextAfterAccept(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	ran := steprunner.Run(t, newWebhookAction(t, r, webhookSecret), steprunner.NewIncidentRef(), pagerParams("x"))
	require.NoError(t, ran.Err)
	came := r.Deliveries()
	require.Len(t, came, 3)
	require.Equal(t, came[0].ID, came[1].ID)
	require.Equal(t, came[0].ID, came[2].ID)
	require.Equal(t, string(came[0].Body), string(came[2].Body))
	require.Len(t, r.Accepted(), 1)

	other := steprunner.NewIncidentRef()
	other.ID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAX"
	require.NoError(t, steprunner.Run(t, newWebhookAction(t, r, webhookSecret), other, pagerParams("x")).Err)
	require.Len(t, r.Accepted(), 2, "another incident's is another message")
}

func TestRetryAfterIsHonored(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		after  string
		least  time.Duration
	}{
		"seconds":    {http.StatusTooManyRequests, "40", 40 * time.Second},
		"a busy one": {http.StatusServiceUnavailable, "20", 20 * time.Second},
		"a date": {
			http.StatusTooManyRequests, time.Now().Add(50 * time.Second).UTC().Format(http.TimeFormat),
			45 * time.Second,
		},
		"without word": {http.StatusTooManyRequests, "", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			r := webhook.Start(t, webhookSecret)
			r.RespondNext(func(w http.ResponseWriter, _ *http.Request) {
				if c.after != "" {
					w.Header().Set("Retry-After", c.after)
				}
				w.WriteHeader(c.status)
			})
			ran := steprunner.Run(t, newWebhookAction(t, r, webhookSecret), steprunner.NewIncidentRef(), pagerParams("x"))
			require.NoError(t, ran.Err)
			require.Len(t, r.Accepted(), 1)
			require.GreaterOrEqual(t, ran.RetryWait, c.least)
			require.Less(t, ran.RetryWait, c.least+10*time.Second)
		})
	}
}

func TestTooLongRetryAfterFails(t *testing.T) {
	r := webhook.Start(t, webhookSecret)
	r.RespondNext(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "999999999")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	ran := steprunner.Run(t, newWebhookAction(t, r, webhookSecret), steprunner.NewIncidentRef(), pagerParams("x"))
	require.ErrorContains(t, ran.Err, "requests a retry after 1h")
	require.Empty(t, r.Accepted())
}

func TestRedirectIsNotFollowed(t *testing.T) {
	r := webhook.Start(t, webhookSecret)
	elsewhere := webhook.Start(t, webhookSecret)
	for _, status := range []int{
		http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect,
		http.StatusPermanentRedirect,
	} {
		r.RespondNext(func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, elsewhere.URL, status) })
		ran := steprunner.Run(t, newWebhookAction(t, r, webhookSecret), steprunner.NewIncidentRef(), pagerParams("x"))
		require.NoError(t, ran.Err)
		require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
		require.Contains(t, ran.Reason, "redirects are not followed")
	}
	require.Empty(t, elsewhere.Deliveries())
}

func TestOnlyConfiguredWebhooksAreCalled(t *testing.T) {
	r := webhook.Start(t, webhookSecret)
	ran := steprunner.Run(t, newWebhookAction(t, r, webhookSecret), steprunner.NewIncidentRef(),
		notify.WebhookParams{ReceiverName: r.URL})
	require.Equal(t, playbooks.OutcomeRefused, ran.Outcome)
	require.Contains(t, ran.Reason, "unknown webhook")
	ran = steprunner.Run(t, &notify.WebhookAction{}, steprunner.NewIncidentRef(), pagerParams("x"))
	require.Equal(t, "no webhooks are configured; add `webhooks:` to stanch.yaml", ran.Reason)
	require.Empty(t, r.Deliveries())
}

// Receivers' addresses are often secrets themselves.
func TestErrorsContainNeitherURLNorSecret(t *testing.T) {
	key, err := notify.ParseSigningKey(webhookSecret)
	require.NoError(t, err)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, address := range map[string]string{
		"nobody listens": closed.URL + "/services/T000/B000/sEcReTpAtH", "written otherwise": closed.URL + "/é/sEcReTpAtH",
		"no URL": "https://user:sEcReTpAtH@[::1/", "user info": strings.Replace(closed.URL, "://", "://u:sEcReTpAtH@", 1),
	} {
		t.Run(name, func(t *testing.T) {
			w := &notify.WebhookAction{Receivers: map[string]notify.WebhookReceiver{"pager": {URL: address, SigningKey: key}}}
			ran := steprunner.Run(t, w, steprunner.NewIncidentRef(), pagerParams("x"))
			said := ran.Reason
			if ran.Err != nil {
				said += ran.Err.Error()
			}
			require.Contains(t, said, "pager")
			require.NotContains(t, said, "sEcReTpAtH")
			require.NotContains(t, said, webhookSecret[6:])
		})
	}
	_, err = notify.ParseSigningKey("not base64: hunter2")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
}

// An endless response is cut off.
func TestWebhookResponseIsBounded(t *testing.T) {
	r := webhook.Start(t, webhookSecret)
	for range 3 {
		r.RespondNext(func(w http.ResponseWriter, _ *http.Request) {
			for range 3 << 8 {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		})
	}
	require.ErrorContains(t, steprunner.Run(t, newWebhookAction(t, r, webhookSecret), steprunner.NewIncidentRef(),
		pagerParams("x")).Err, "larger than 1048576 bytes")
}
