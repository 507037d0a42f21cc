package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"stanch/activities/aws"
	"stanch/sensors"
	"stanch/sensors/rules"
	standin "stanch/testenv/aws"
	"stanch/testenv/temporal"
	"stanch/worker/auditevents"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/health"
	"stanch/worker/ingest"
	"stanch/workflows"
	"stanch/workflows/incident"
)

// receivedDetections are the detections that incidents received.
type receivedDetections struct {
	mu         sync.Mutex
	detections []sensors.Detection
}

func (h *receivedDetections) incidentWorkflow(ctx workflow.Context, _ incident.Input) error {
	for {
		var batch []incident.AttestedDetection
		workflow.GetSignalChannel(ctx, workflows.SignalDetections).Receive(ctx, &batch)
		h.mu.Lock()
		for _, a := range batch {
			h.detections = append(h.detections, a.Detection)
		}
		h.mu.Unlock()
	}
}

func (h *receivedDetections) waitForRule(t *testing.T, rule string) (d sensors.Detection) {
	t.Helper()
	require.Eventually(t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, d = range h.detections {
			if d.Rule == rule {
				return true
			}
		}
		return false
	}, 30*time.Second, 20*time.Millisecond, "rule %s", rule)
	return d
}

// findDetection returns a rule's detection of an event; nil if there is none.
func (h *receivedDetections) findDetection(rule, event string) *sensors.Detection {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.detections {
		if d.Rule == rule && d.Event.ID == event {
			return &d
		}
	}
	return nil
}

// newCloudTrailRecord returns a CloudTrail record of a role's session.
func newCloudTrailRecord(id, event, service, role, session, key, ip, more string) string {
	return fmt.Sprintf(
		`{"eventID":%q,"eventTime":%q,"eventSource":"%s.amazonaws.com","eventName":%q,"awsRegion":"eu-central-1","sourceIPAddress":%q,"userAgent":"aws-cli/2","userIdentity":{"type":"AssumedRole","principalId":"AROA1:%s","arn":"arn:aws:sts::123456789012:assumed-role/%s/%s","accountId":"123456789012","accessKeyId":%q,"sessionContext":{"sessionIssuer":{"type":"Role","principalId":"AROA1","arn":"arn:aws:iam::123456789012:role/apps/%s","userName":%q}}}%s}`,
		id,
		time.Now().UTC().Format(time.RFC3339),
		service,
		event,
		ip,
		session,
		role,
		session,
		key,
		role,
		role,
		more,
	)
}

func newPod(name, account string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "uid-of-pod", Labels: labels},
		Spec:       corev1.PodSpec{ServiceAccountName: account, NodeName: "node-1"},
	}
}

// newOwnedPod returns a pod with a controller that has the name of its service account.
func newOwnedPod(name, account, kind string) *corev1.Pod {
	p, yes := newPod(name, account, nil), true
	p.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "apps/v1", Kind: kind, Name: account,
		UID: types.UID("uid-of-" + account), Controller: &yes,
	}}
	return p
}

// cloudTrailFixture is a cluster with workloads that have roles, an SQS queue, and a worker that reads it.
type cloudTrailFixture struct {
	receivedDetections
	kube         *fake.Clientset
	queueURL     string
	sqs          *sqs.Client
	failingCalls sync.Map // calls that fail while they are set
	fakeAWS      *standin.FakeAWS

	monitor     *health.Monitor
	clockOffset atomic.Int64 // how far the monitor's clock is ahead
}

func newCloudTrailFixture(t *testing.T, lookup bool) *cloudTrailFixture {
	t.Helper()
	for _, pair := range standin.CredentialEnv() {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	e := &cloudTrailFixture{fakeAWS: standin.StartFake(t)}
	e.sqs = sqs.NewFromConfig(awssdk.Config{
		Region:       standin.Region,
		Credentials:  credentials.NewStaticCredentialsProvider(standin.RootAccessKeyID, standin.RootSecretAccessKey, ""),
		BaseEndpoint: &e.fakeAWS.Moto.URL,
	})
	made, err := e.sqs.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: awssdk.String("cloudtrail")})
	require.NoError(t, err)
	e.queueURL = *made.QueueUrl
	e.kube = fake.NewClientset(
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web",
			Annotations: map[string]string{"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/apps/web"},
		}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "api",
			Annotations: map[string]string{"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/api"},
		}},
		newPod("web-1", "web", nil), newOwnedPod("db-0", "db", "StatefulSet"),
		&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "uid-of-db"}},
		newOwnedPod("api-7d9c4-bcdfg", "api", "Deployment"), newOwnedPod("api-7d9c4-xzvwt", "api", "Deployment"),
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "api", UID: "uid-of-api"}},
	)
	e.kube.PrependReactor("get", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		_, away := e.failingCalls.Load("kube")
		return away, nil, errors.New("the API server is away")
	})
	account, err := aws.Open(t.Context(), aws.Options{Region: standin.Region, Endpoint: e.fakeAWS.URL})
	require.NoError(t, err)
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	cfg := config.Default()
	cfg.AWS = &config.AWS{
		Region: standin.Region, Cluster: "production",
		CloudTrail: &config.CloudTrail{QueueURL: e.queueURL, UseLookup: lookup},
	}
	log := slog.New(slog.DiscardHandler)
	w := &Worker{Options: Options{Config: cfg, Log: log}, awsAccount: account}
	w.Ingester = &ingest.Ingester{
		Temporal:  temporal.Start(t, map[string]any{"Story": e.incidentWorkflow}),
		Authority: auth, Config: cfg, Kube: e.kube, Log: log, IncidentWorkflow: "Story",
	}
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	w.ruleEvaluator = auditevents.NewRuleEvaluator(func() *rules.Set { return set },
		[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, "", log)
	e.monitor = health.NewMonitor(health.Options{
		Ingester: w.Ingester, Log: log,
		Now: func() time.Time { return time.Now().Add(time.Duration(e.clockOffset.Load())) },
	})
	w.HealthMonitor = e.monitor
	require.NoError(t, w.followCloudTrail(context.Background()))
	t.Cleanup(w.Close)
	return e
}

func (e *cloudTrailFixture) sendMessages(t *testing.T, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		_, err := e.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &e.queueURL, MessageBody: &body})
		require.NoError(t, err)
	}
}

// countMessagesLeft returns how many messages are in the queue, received or not.
func (e *cloudTrailFixture) countMessagesLeft(t *testing.T) string {
	t.Helper()
	left, err := e.queueCounts(t.Context())
	require.NoError(t, err)
	return left
}

func (e *cloudTrailFixture) queueCounts(ctx context.Context) (string, error) {
	out, err := e.sqs.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl: &e.queueURL,
		AttributeNames: []sqstypes.QueueAttributeName{
			"ApproximateNumberOfMessages",
			"ApproximateNumberOfMessagesNotVisible",
		},
	})
	if err != nil {
		return "", err
	}
	return out.Attributes["ApproximateNumberOfMessages"] + "+" + out.Attributes["ApproximateNumberOfMessagesNotVisible"],
		nil
}

func TestCloudTrailEventsAreReceivedFromQueue(t *testing.T) {
	e := newCloudTrailFixture(t, false)

	// EKS Pod Identity names the pod of a new session; calls with its key are that pod's.
	given := `{"detail":{"eventID":"c-1","eventTime":"` + time.Now().UTC().Format(time.RFC3339) +
		`","eventSource":"sts.amazonaws.com","eventName":"AssumeRole","userIdentity":{"type":"AWSService","invokedBy":"pods.eks.amazonaws.com"},"requestParameters":{"tags":[{"key":"eks-cluster-name","value":"production"},{"key":"kubernetes-namespace","value":"shop"},{"key":"kubernetes-service-account","value":"db"},{"key":"kubernetes-pod-name","value":"db-0"},{"key":"kubernetes-pod-uid","value":"uid-of-pod"}]},"responseElements":{"credentials":{"accessKeyId":"ASIADB"}}}}`
	used, err := json.Marshal(map[string]string{"Type": "Notification", "Message": newCloudTrailRecord("c-2",
		"GetFederationToken", "sts", "db", "x", "ASIADB", "10.0.0.7", "")})
	require.NoError(t, err)
	e.sendMessages(t, given)
	require.Eventually(t, func() bool { return e.countMessagesLeft(t) == "0+0" }, 20*time.Second, 50*time.Millisecond)
	e.sendMessages(t, string(used))
	one := e.waitForRule(t, "cloud-workload-credentials-created")
	require.Equal(t, "db-0", one.Event.Container.Pod.Name)
	require.Equal(t, "uid-of-pod", one.Event.Container.Pod.UID)
	require.Equal(t, "StatefulSet", one.Event.Container.Workload.Kind, "it joins the incident of the pod's workload")
	require.Contains(t, one.Reasons[0], "called GetFederationToken of sts")

	// A pod of another cluster has the same name, and is ignored.
	e.sendMessages(t, strings.NewReplacer("c-1", "c-6", "production", "staging", "ASIADB", "ASIAOTHER").Replace(given))
	require.Eventually(t, func() bool { return e.countMessagesLeft(t) == "0+0" }, 20*time.Second, 50*time.Millisecond)
	e.sendMessages(t, newCloudTrailRecord("c-7", "GetSessionToken", "sts", "db", "x", "ASIAOTHER", "10.0.0.7", ""),
		newCloudTrailRecord("c-8", "DeleteTrail", "cloudtrail", "db", "x", "ASIAOTHER", "10.0.0.7", ""))
	one = e.waitForRule(t, "cloud-trail-stopped")
	require.Equal(t, sensors.Subject{Kind: "Role", Name: "123456789012/db"}, one.Event.Subject)
	require.Nil(t, e.findDetection("cloud-workload-credentials-created", "cloudtrail/c-7"))

	// IRSA: the annotation names the service account, which has one pod.
	e.sendMessages(t, newCloudTrailRecord("c-3", "ListBuckets", "s3", "web", "botocore-session-1", "ASIAWEB",
		"203.0.113.7", ""))
	one = e.waitForRule(t, "workload-role-used-outside")
	require.Equal(t, "web-1", one.Event.Container.Pod.Name)
	require.Equal(t, sensors.SeverityCritical, one.Severity)
	require.Equal(t, "aws:arn:aws:sts::123456789012:assumed-role/web/botocore-session-1", one.Event.Actor)
	e.waitForRule(t, "cloud-enumeration")

	// Several pods have the service account: the workload's incident gets the detection, without a pod to contain.
	e.sendMessages(t, newCloudTrailRecord("c-5", "RunInstances", "ec2", "api", "aws-sdk-1", "ASIAAPI", "10.0.0.7", ""))
	one = e.waitForRule(t, "cloud-instances-by-workload")
	require.False(t, incident.HasContainer(one))
	require.Equal(t, sensors.Workload{Kind: "Deployment", Name: "api"}, one.Event.Container.Workload)
	require.Contains(t, strings.Join(one.Reasons, " "), "2 pods use the service account shop/api")
	require.Equal(t, "shop/Deployment/api", incident.WorkloadOfDetection(one).String())

	e.sendMessages(t, newCloudTrailRecord("c-4", "StopLogging", "cloudtrail", "admin", "alice", "ASIAADM", "203.0.113.7",
		""))
	require.Eventually(t, func() bool { return e.findDetection("cloud-trail-stopped", "cloudtrail/c-4") != nil },
		30*time.Second, 20*time.Millisecond)
	one = *e.findDetection("cloud-trail-stopped", "cloudtrail/c-4")
	require.Equal(t, sensors.Subject{Kind: "Role", Name: "123456789012/admin"}, one.Event.Subject, "nobody's pod")
	require.False(t, incident.HasContainer(one))

	// Messages that cannot be decoded do not return forever.
	e.sendMessages(t, "nonsense", `{"s3Bucket":"b","s3ObjectKey":["k"]}`)
	require.Eventually(t, func() bool { return e.countMessagesLeft(t) == "0+0" }, 20*time.Second, 50*time.Millisecond)
}

func TestSilentCloudTrailIsReported(t *testing.T) {
	e := newCloudTrailFixture(t, false)
	e.clockOffset.Store(int64(-150 * time.Minute)) // detections must not be from the future
	for n := range 2 {
		for i := range 10 {
			e.sendMessages(t, newCloudTrailRecord(fmt.Sprintf("s-%d-%d", n, i), "GetUser", "iam", "admin", "alice", "ASIAADM",
				"10.0.0.7", ""))
		}
		require.Eventually(t, func() bool { return e.countMessagesLeft(t) == "0+0" }, 20*time.Second, 50*time.Millisecond)
		e.clockOffset.Add(int64(11 * time.Minute))
	}
	e.monitor.CheckOnce(t.Context())
	e.clockOffset.Add(int64(2 * time.Hour))
	e.monitor.CheckOnce(t.Context())
	one := e.waitForRule(t, "source-lost")
	require.Equal(t, sensors.Subject{Kind: "Source", Name: "cloudtrail"}, one.Event.Subject)

	e.sendMessages(t, `{"Records":[`+newCloudTrailRecord("s-3", "StopLogging", "cloudtrail", "admin", "alice", "ASIAADM",
		"10.0.0.7", "")+`,{"eventID":`+strings.Repeat("[", 600)+strings.Repeat("]", 600)+`}]}`)
	e.waitForRule(t, "cloud-trail-stopped")
	e.monitor.CheckOnce(t.Context())
	require.Contains(t, e.waitForRule(t, "source-events-unreadable").Reasons[0], "1 events of the source cloudtrail")
}

func TestQueueMessageIsDeletedAfterTemporalAcceptsIt(t *testing.T) {
	e := newCloudTrailFixture(t, false)
	send := func(id string) {
		e.sendMessages(t, newCloudTrailRecord(id, "ListBuckets", "s3", "web", "botocore-session-1", "ASIAWEB", "203.0.113.7",
			""))
	}
	e.failingCalls.Store("kube", true)
	send("k-1")
	require.Eventually(t, func() bool { return e.countMessagesLeft(t) == "0+1" }, 20*time.Second, 20*time.Millisecond,
		"received")
	before := len(e.fakeAWS.CallTimes("ReceiveMessage"))
	require.Eventually(t, func() bool { return len(e.fakeAWS.CallTimes("ReceiveMessage")) > before }, 20*time.Second,
		20*time.Millisecond, "the consumer has finished with the first message when it receives again")
	require.Empty(t, e.fakeAWS.CallTimes("DeleteMessage"), "the pod lookup failed, so Temporal does not have it")
	require.Equal(t, "0+1", e.countMessagesLeft(t))
	require.Nil(t, e.findDetection("workload-role-used-outside", "cloudtrail/k-1"))

	// Deletion waits here for the detection: the consumer must have passed it to Temporal before.
	accepted := make(chan bool, 1)
	e.fakeAWS.RunBeforeNext("DeleteMessage", func() {
		end := time.Now().Add(10 * time.Second)
		poll := time.NewTicker(5 * time.Millisecond)
		defer poll.Stop()
		for now := time.Now(); e.findDetection("workload-role-used-outside", "cloudtrail/k-2") == nil && now.Before(end); {
			now = <-poll.C
		}
		accepted <- time.Now().Before(end)
	})
	e.failingCalls.Delete("kube")
	send("k-2")
	select {
	case ok := <-accepted:
		require.True(t, ok, "deleted before Temporal accepted it")
	case <-time.After(30 * time.Second):
		t.Fatal("the message was not deleted")
	}
	require.Eventually(t, func() bool { return e.countMessagesLeft(t) == "0+1" }, 20*time.Second, 20*time.Millisecond,
		"only the first message is left")
}

func TestCloudTrailEventsAreReceivedByLookup(t *testing.T) {
	e := newCloudTrailFixture(t, true)
	e.fakeAWS.AddEvents(1,
		standin.CloudTrailEvent{
			Name: "UpdateAssumeRolePolicy", Time: time.Now().Add(-time.Minute),
			RawJSON: newCloudTrailRecord("l-1", "UpdateAssumeRolePolicy", "iam", "admin", "alice", "ASIAADM", "10.0.0.7",
				`,"requestParameters":{"roleName":"web"}`),
		},
		standin.CloudTrailEvent{
			Name: "DeleteDetector", Time: time.Now().Add(-2 * time.Minute),
			RawJSON: newCloudTrailRecord("l-2", "DeleteDetector", "guardduty", "admin", "alice", "ASIAADM", "10.0.0.7", ""),
		},
	)
	one := e.waitForRule(t, "cloud-trust-changed")
	require.Equal(t, "web", one.Event.Cloud.TargetPrincipal)
	e.waitForRule(t, "cloud-monitoring-disabled")
	calls := e.fakeAWS.CallTimes("LookupEvents")
	require.GreaterOrEqual(t, len(calls), 2, "each event is on a page of its own")
	for i := range calls[1:] {
		require.GreaterOrEqual(t, calls[i+1].Sub(calls[i]), 450*time.Millisecond, "CloudTrail allows two requests per second")
	}
}
