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

// PodIdentityAssociation is an EKS Pod Identity association of the fake.
type PodIdentityAssociation struct {
	Cluster, Namespace, ServiceAccount, RoleARN string
	TargetRoleARN                               string
	Untagged                                    bool
}

// CloudTrailEvent is an event in CloudTrail.
type CloudTrailEvent struct {
	Name, User, Key, Resource string
	Time                      time.Time
	RawJSON                   string // the complete event; generated if empty
}

// FakeAWS is the AWS account that Stanch connects to.
type FakeAWS struct {
	*Moto
	URL string // the fake's URL; Moto.URL is moto's own

	mu           sync.Mutex
	throttled    map[string]int
	failing      map[string]string // error codes by action
	calls        map[string][]time.Time
	associations []PodIdentityAssociation
	events       []CloudTrailEvent
	pageSize     int
	beforeCall   map[string]func()
}

// NewFake starts a fake in front of moto.
func (m *Moto) NewFake(t testing.TB) *FakeAWS {
	t.Helper()
	to, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := &FakeAWS{
		Moto: m, throttled: map[string]int{}, failing: map[string]string{}, calls: map[string][]time.Time{},
		beforeCall: map[string]func(){}, pageSize: 50,
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.serveRequest(w, r,
			proxy)
	}))
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// ThrottleNext makes the next n calls of an action fail with a throttling error.
func (s *FakeAWS) ThrottleNext(action string, n int) { s.withLock(func() { s.throttled[action] = n }) }

// DenyAction makes an action fail as if Stanch lacked the permission.
func (s *FakeAWS) DenyAction(action string) { s.FailAction(action, "AccessDenied") }

// FailAction makes an action fail with a code; "" restores it.
func (s *FakeAWS) FailAction(action, code string) { s.withLock(func() { s.failing[action] = code }) }

// RunBeforeNext runs f once, just before the next call of an action is forwarded, as a concurrent writer would.
func (s *FakeAWS) RunBeforeNext(action string, do func()) {
	s.withLock(func() { s.beforeCall[action] = do })
}

// AddAssociation adds an EKS Pod Identity association.
func (s *FakeAWS) AddAssociation(a PodIdentityAssociation) {
	s.withLock(func() { s.associations = append(s.associations, a) })
}

// AddEvents adds events to CloudTrail, which returns them in pages of the given size.
func (s *FakeAWS) AddEvents(page int, events ...CloudTrailEvent) {
	s.withLock(func() { s.events, s.pageSize = append(s.events, events...), page })
}

// CallTimes returns the times of the calls of an action.
func (s *FakeAWS) CallTimes(action string) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls[action])
}

func (s *FakeAWS) withLock(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

// maxRequestBytes is the maximum size of a request.
const maxRequestBytes = 1 << 20

// apiRequest is one call, with its protocol and parameters.
type apiRequest struct {
	*http.Request
	body            []byte
	form            url.Values
	action          string
	isQueryProtocol bool // responses are XML
}

func parseRequest(r *http.Request) (apiRequest, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequestBytes))
	if err != nil {
		return apiRequest{}, fmt.Errorf("read the request: %w", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	out := apiRequest{Request: r, body: body}
	switch target := r.Header.Get("X-Amz-Target"); {
	case target != "":
		out.action = target[strings.LastIndexByte(target, '.')+1:]
	case strings.HasPrefix(r.URL.Path, "/clusters/") && strings.Contains(r.URL.Path, "/pod-identity-associations"):
		if out.action = "DescribePodIdentityAssociation"; strings.HasSuffix(r.URL.Path, "/pod-identity-associations") {
			out.action = "ListPodIdentityAssociations"
		}
	default:
		if out.form, err = url.ParseQuery(string(body)); err != nil {
			return apiRequest{}, fmt.Errorf("read the request: %w", err)
		}
		out.action, out.isQueryProtocol = out.form.Get("Action"), true
	}
	return out, nil
}

func (s *FakeAWS) serveRequest(w http.ResponseWriter, raw *http.Request, moto http.Handler) {
	r, err := parseRequest(raw)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var code string
	var before func()
	s.withLock(func() {
		s.calls[r.action] = append(s.calls[r.action], time.Now())
		if code = s.failing[r.action]; s.throttled[r.action] > 0 {
			s.throttled[r.action]--
			code = "ThrottlingException"
		}
		before = s.beforeCall[r.action]
		delete(s.beforeCall, r.action)
	})
	if before != nil {
		before()
	}
	switch {
	case code != "":
		writeError(w, r, code, "the fake is set to return this for "+r.action)
	case r.action == "SimulatePrincipalPolicy":
		s.simulatePrincipalPolicy(w, r)
	case r.action == "LookupEvents":
		s.lookupEvents(w, r)
	case r.action == "ListPodIdentityAssociations":
		s.listAssociations(w, r)
	case r.action == "DescribePodIdentityAssociation":
		s.describeAssociation(w, r)
	default:
		moto.ServeHTTP(w, raw)
	}
}

func writeError(w http.ResponseWriter, r apiRequest, code, message string) {
	status := http.StatusBadRequest
	if code == "AccessDenied" {
		status = http.StatusForbidden
	}
	if r.isQueryProtocol {
		type body struct {
			XMLName xml.Name `xml:"ErrorResponse"`
			Code    string   `xml:"Error>Code"`
			Message string   `xml:"Error>Message"`
		}
		writeResponse(w, status, "text/xml", mustXML(body{Code: code, Message: message}))
		return
	}
	if code == "AccessDenied" {
		code = "AccessDeniedException"
	}
	w.Header().Set("X-Amzn-Errortype", code)
	writeResponse(w, status, "application/json", mustJSON(map[string]string{"__type": code, "message": message}))
}

func writeResponse(w http.ResponseWriter, status int, kind string, body []byte) {
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

func (a PodIdentityAssociation) id(i int) string { return fmt.Sprintf("a-%d", i) }

func (s *FakeAWS) listAssociations(w http.ResponseWriter, r apiRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cluster := strings.Split(strings.Trim(r.URL.Path, "/"), "/")[1]
	namespace, account := r.URL.Query().Get("namespace"), r.URL.Query().Get("serviceAccount")
	found := []map[string]string{}
	for i, a := range s.associations {
		if a.Cluster == cluster && (namespace == "" || a.Namespace == namespace) &&
			(account == "" || a.ServiceAccount == account) {
			found = append(found, map[string]string{
				"clusterName": a.Cluster, "namespace": a.Namespace,
				"serviceAccount": a.ServiceAccount, "associationId": a.id(i),
			})
		}
	}
	writeResponse(w, http.StatusOK, "application/json", mustJSON(map[string]any{"associations": found}))
}

func (s *FakeAWS) describeAssociation(w http.ResponseWriter, r apiRequest) {
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
			writeResponse(w, http.StatusOK, "application/json", mustJSON(map[string]any{"association": one}))
			return
		}
	}
	writeError(w, r, "ResourceNotFoundException", "there is no such association")
}

// lookupEvents responds as CloudTrail does: in pages, newest first, within the given times.
func (s *FakeAWS) lookupEvents(w http.ResponseWriter, r apiRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var in struct {
		LookupAttributes []struct{ AttributeKey, AttributeValue string }
		NextToken        string
		StartTime        float64
		EndTime          float64
	}
	if err := json.Unmarshal(r.body, &in); err != nil || len(in.LookupAttributes) != 1 {
		writeError(w, r, "InvalidLookupAttributesException", "one attribute is wanted")
		return
	}
	first := 0
	if in.NextToken != "" {
		if _, err := fmt.Sscanf(in.NextToken, "page-%d", &first); err != nil {
			writeError(w, r, "InvalidNextTokenException", in.NextToken)
			return
		}
	}
	var found []map[string]any
	for _, e := range slices.Backward(s.events) {
		value := map[string]string{
			"ResourceName": e.Resource, "Username": e.User, "AccessKeyId": e.Key,
			"ReadOnly": "false",
		}[in.LookupAttributes[0].AttributeKey]
		at := float64(e.Time.UnixMilli()) / 1000
		if value == "" || value != in.LookupAttributes[0].AttributeValue || at < in.StartTime || at > in.EndTime {
			continue
		}
		raw := e.RawJSON
		if raw == "" {
			raw = string(mustJSON(map[string]string{"eventName": e.Name}))
		}
		found = append(found, map[string]any{
			"EventId": fmt.Sprintf("%s-%d", e.Name, e.Time.UnixNano()), "EventName": e.Name,
			"Username": e.User, "EventTime": at, "CloudTrailEvent": raw,
		})
	}
	out := map[string]any{"Events": found[min(first, len(found)):min(first+s.pageSize, len(found))]}
	if first+s.pageSize < len(found) {
		out["NextToken"] = fmt.Sprintf("page-%d", first+s.pageSize)
	}
	writeResponse(w, http.StatusOK, "application/x-amz-json-1.1", mustJSON(out))
}
