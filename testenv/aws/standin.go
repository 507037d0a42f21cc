package aws

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Association is an EKS Pod Identity association as the stand-in knows it.
type Association struct {
	Cluster, Namespace, ServiceAccount, RoleARN string
	TargetRoleARN                               string
	Untagged                                    bool
}

// Event is an event that CloudTrail has.
type Event struct {
	Name, User, Key, Resource string
	At                        time.Time
	Raw                       string // the whole event; made if empty
}

// StandIn is what Stanch talks to.
type StandIn struct {
	*Moto
	URL string // of the stand-in; Moto.URL is moto's own

	mu           sync.Mutex
	throttled    map[string]int
	failing      map[string]string // action to error code
	calls        map[string][]time.Time
	associations []Association
	events       []Event
	pageSize     int
	before       map[string]func()
}

// StandIn starts a stand-in of its own in front of moto.
func (m *Moto) StandIn(t testing.TB) *StandIn {
	t.Helper()
	to, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := &StandIn{Moto: m, throttled: map[string]int{}, failing: map[string]string{}, calls: map[string][]time.Time{}, before: map[string]func(){}, pageSize: 50}
	proxy := httputil.NewSingleHostReverseProxy(to)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, proxy) }))
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Throttle lets the next n calls of an action be throttled.
func (s *StandIn) Throttle(action string, n int) { s.locked(func() { s.throttled[action] = n }) }

// Deny lets an action be denied, as if Stanch lacked the permission.
func (s *StandIn) Deny(action string) { s.Fail(action, "AccessDenied") }

// Fail lets an action fail with a code; "" lets it work again.
func (s *StandIn) Fail(action, code string) { s.locked(func() { s.failing[action] = code }) }

// Before runs something once, just before the next call of an action is passed on: another who is faster.
func (s *StandIn) Before(action string, do func()) { s.locked(func() { s.before[action] = do }) }

// Associate adds an EKS Pod Identity association.
func (s *StandIn) Associate(a Association) {
	s.locked(func() { s.associations = append(s.associations, a) })
}

// Happened adds an event to CloudTrail, which tells it in pages of so many.
func (s *StandIn) Happened(page int, events ...Event) {
	s.locked(func() { s.events, s.pageSize = append(s.events, events...), page })
}

// Calls are the times at which an action was asked for.
func (s *StandIn) Calls(action string) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls[action])
}

func (s *StandIn) locked(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

// maxBody bounds a request.
const maxBody = 1 << 20

// request is one call: which protocol it speaks and what it asks.
type request struct {
	*http.Request
	body   []byte
	form   url.Values
	action string
	query  bool // answers are XML
}

func parse(r *http.Request) (request, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return request{}, fmt.Errorf("read the request: %w", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	out := request{Request: r, body: body}
	switch target := r.Header.Get("X-Amz-Target"); {
	case target != "":
		out.action = target[strings.LastIndexByte(target, '.')+1:]
	case strings.HasPrefix(r.URL.Path, "/clusters/") && strings.Contains(r.URL.Path, "/pod-identity-associations"):
		if out.action = "DescribePodIdentityAssociation"; strings.HasSuffix(r.URL.Path, "/pod-identity-associations") {
			out.action = "ListPodIdentityAssociations"
		}
	default:
		if out.form, err = url.ParseQuery(string(body)); err != nil {
			return request{}, fmt.Errorf("read the request: %w", err)
		}
		out.action, out.query = out.form.Get("Action"), true
	}
	return out, nil
}

func (s *StandIn) serve(w http.ResponseWriter, raw *http.Request, moto http.Handler) {
	r, err := parse(raw)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var code string
	var before func()
	s.locked(func() {
		s.calls[r.action] = append(s.calls[r.action], time.Now())
		if code = s.failing[r.action]; s.throttled[r.action] > 0 {
			s.throttled[r.action]--
			code = "ThrottlingException"
		}
		before = s.before[r.action]
		delete(s.before, r.action)
	})
	if before != nil {
		before()
	}
	switch {
	case code != "":
		fail(w, r, code, "the stand-in was told to answer "+r.action+" with this")
	case r.action == "SimulatePrincipalPolicy":
		s.simulate(w, r)
	case r.action == "LookupEvents":
		s.lookup(w, r)
	case r.action == "ListPodIdentityAssociations":
		s.listAssociations(w, r)
	case r.action == "DescribePodIdentityAssociation":
		s.describeAssociation(w, r)
	default:
		moto.ServeHTTP(w, raw)
	}
}

func fail(w http.ResponseWriter, r request, code, message string) {
	status := http.StatusBadRequest
	if code == "AccessDenied" {
		status = http.StatusForbidden
	}
	if r.query {
		type body struct {
			XMLName xml.Name `xml:"ErrorResponse"`
			Code    string   `xml:"Error>Code"`
			Message string   `xml:"Error>Message"`
		}
		answer(w, status, "text/xml", mustXML(body{Code: code, Message: message}))
		return
	}
	if code == "AccessDenied" {
		code = "AccessDeniedException"
	}
	w.Header().Set("X-Amzn-Errortype", code)
	answer(w, status, "application/json", mustJSON(map[string]string{"__type": code, "message": message}))
}

func answer(w http.ResponseWriter, status int, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func mustXML(v any) []byte {
	raw, err := xml.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

func mustJSON(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

func (a Association) id(i int) string { return fmt.Sprintf("a-%d", i) }

func (s *StandIn) listAssociations(w http.ResponseWriter, r request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cluster := strings.Split(strings.Trim(r.URL.Path, "/"), "/")[1]
	namespace, account := r.URL.Query().Get("namespace"), r.URL.Query().Get("serviceAccount")
	found := []map[string]string{}
	for i, a := range s.associations {
		if a.Cluster == cluster && (namespace == "" || a.Namespace == namespace) && (account == "" || a.ServiceAccount == account) {
			found = append(found, map[string]string{"clusterName": a.Cluster, "namespace": a.Namespace, "serviceAccount": a.ServiceAccount, "associationId": a.id(i)})
		}
	}
	answer(w, http.StatusOK, "application/json", mustJSON(map[string]any{"associations": found}))
}

func (s *StandIn) describeAssociation(w http.ResponseWriter, r request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	for i, a := range s.associations {
		if a.Cluster == parts[1] && a.id(i) == parts[len(parts)-1] {
			one := map[string]any{
				"clusterName": a.Cluster, "namespace": a.Namespace, "serviceAccount": a.ServiceAccount, "associationId": a.id(i),
				"roleArn": a.RoleARN, "disableSessionTags": a.Untagged,
			}
			if a.TargetRoleARN != "" {
				one["targetRoleArn"] = a.TargetRoleARN
			}
			answer(w, http.StatusOK, "application/json", mustJSON(map[string]any{"association": one}))
			return
		}
	}
	fail(w, r, "ResourceNotFoundException", "there is no such association")
}

// lookup answers as CloudTrail does: pages, the newest first, within the times given.
func (s *StandIn) lookup(w http.ResponseWriter, r request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var in struct {
		LookupAttributes []struct{ AttributeKey, AttributeValue string }
		NextToken        string
		StartTime        float64
		EndTime          float64
	}
	if err := json.Unmarshal(r.body, &in); err != nil || len(in.LookupAttributes) != 1 {
		fail(w, r, "InvalidLookupAttributesException", "one attribute is wanted")
		return
	}
	first := 0
	if in.NextToken != "" {
		if _, err := fmt.Sscanf(in.NextToken, "page-%d", &first); err != nil {
			fail(w, r, "InvalidNextTokenException", in.NextToken)
			return
		}
	}
	var found []map[string]any
	for _, e := range slices.Backward(s.events) {
		value := map[string]string{"ResourceName": e.Resource, "Username": e.User, "AccessKeyId": e.Key, "ReadOnly": "false"}[in.LookupAttributes[0].AttributeKey]
		at := float64(e.At.UnixMilli()) / 1000
		if value == "" || value != in.LookupAttributes[0].AttributeValue || at < in.StartTime || at > in.EndTime {
			continue
		}
		raw := e.Raw
		if raw == "" {
			raw = string(mustJSON(map[string]string{"eventName": e.Name}))
		}
		found = append(found, map[string]any{"EventId": fmt.Sprintf("%s-%d", e.Name, e.At.UnixNano()), "EventName": e.Name, "Username": e.User, "EventTime": at, "CloudTrailEvent": raw})
	}
	out := map[string]any{"Events": found[min(first, len(found)):min(first+s.pageSize, len(found))]}
	if first+s.pageSize < len(found) {
		out["NextToken"] = fmt.Sprintf("page-%d", first+s.pageSize)
	}
	answer(w, http.StatusOK, "application/x-amz-json-1.1", mustJSON(out))
}
