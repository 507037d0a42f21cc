package metrics

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/grpc"
)

// TemporalMetrics counts the work of this process's Temporal client and workers. It has only the metrics in the table
// below, and none of the SDK's many others. It is safe for concurrent use.
type TemporalMetrics struct {
	counters         map[string]*prometheus.CounterVec
	timers           map[string]*prometheus.HistogramVec
	labels           map[string][]string
	incidentsStarted prometheus.Counter

	mu               sync.Mutex
	knownLabelValues map[string]map[string]bool // values so far, by label
}

// maxValuesPerLabel is the maximum number of values of each label, because whoever may start workflows can invent
// types.
const maxValuesPerLabel = 64

// NewTemporalMetrics returns the counters. WithMetrics adds them to a client.
func NewTemporalMetrics() *TemporalMetrics {
	t := &TemporalMetrics{
		counters: map[string]*prometheus.CounterVec{}, timers: map[string]*prometheus.HistogramVec{},
		labels: map[string][]string{}, knownLabelValues: map[string]map[string]bool{},
		incidentsStarted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stanch_incidents_started_total",
			Help: "Incidents that this gateway opened.",
		}),
	}
	t.addCounters()
	t.addTimers()
	return t
}

func (t *TemporalMetrics) addCounters() {
	for _, c := range []struct {
		from, name, help string
		labels           []string
	}{
		{"temporal_workflow_completed", "workflow_completed", "Workflows that succeeded.", []string{"workflow_type"}},
		{"temporal_workflow_canceled", "workflow_canceled", "Workflows that were canceled.", []string{"workflow_type"}},
		{"temporal_workflow_failed", "workflow_failed", "Workflows that failed.", []string{"workflow_type"}},
		{
			"temporal_workflow_task_execution_failed", "workflow_task_failed",
			"Workflow tasks that failed; NonDeterminismError means a failed upgrade.",
			[]string{"workflow_type", "failure_reason"},
		},
		{
			"temporal_activity_execution_failed", "activity_failed", "Activity attempts that failed.",
			[]string{"activity_type"},
		},
		{"temporal_request_failure", "request_failed", "Requests to Temporal that failed.", []string{"operation"}},
		{
			"temporal_long_request_failure", "long_request_failed", "Long polls to Temporal that failed.",
			[]string{"operation"},
		},
	} {
		t.counters[c.from] = prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stanch_temporal_" + c.name + "_total",
			Help: c.help,
		}, c.labels)
		t.labels[c.from] = c.labels
	}
}

func (t *TemporalMetrics) addTimers() {
	quick := []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	for _, h := range []struct {
		from, name, help string
		labels           []string
	}{
		{
			"temporal_workflow_task_schedule_to_start_latency", "workflow_task_schedule_to_start",
			"How long a workflow task waited for a worker.", nil,
		},
		{
			"temporal_workflow_task_execution_latency", "workflow_task_execution", "How long a workflow task took.",
			[]string{"workflow_type"},
		},
		{
			"temporal_activity_schedule_to_start_latency", "activity_schedule_to_start",
			"How long an activity waited for a worker.", nil,
		},
		{
			"temporal_activity_execution_latency", "activity_execution", "How long an activity attempt took.",
			[]string{"activity_type"},
		},
		{"temporal_request_latency", "request", "How long a request to Temporal took.", []string{"operation"}},
	} {
		t.timers[h.from] = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stanch_temporal_" + h.name + "_seconds",
			Help: h.help, Buckets: quick,
		}, h.labels)
		t.labels[h.from] = h.labels
	}
}

// Describe implements prometheus.Collector.
func (t *TemporalMetrics) Describe(out chan<- *prometheus.Desc) {
	t.incidentsStarted.Describe(out)
	for _, c := range t.counters {
		c.Describe(out)
	}
	for _, h := range t.timers {
		h.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (t *TemporalMetrics) Collect(out chan<- prometheus.Metric) {
	t.incidentsStarted.Collect(out)
	for _, c := range t.counters {
		c.Collect(out)
	}
	for _, h := range t.timers {
		h.Collect(out)
	}
}

// ClientHandler returns the metrics handler for the SDK.
func (t *TemporalMetrics) ClientHandler() client.MetricsHandler {
	return temporalHandler{TemporalMetrics: t}
}

// WithMetrics returns a client's options with the counters.
func (t *TemporalMetrics) WithMetrics(o client.Options) client.Options {
	o.MetricsHandler = t.ClientHandler()
	o.ConnectionOptions.DialOptions = append(o.ConnectionOptions.DialOptions,
		grpc.WithChainUnaryInterceptor(t.countStartedIncidents))
	return o
}

// countStartedIncidents counts new incidents: the SDK does not report whether a signal started a workflow.
func (t *TemporalMetrics) countStartedIncidents(ctx context.Context, method string, req, reply any,
	conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	err := invoke(ctx, method, req, reply, conn, opts...)
	if err != nil {
		return err
	}
	asked, ok := req.(*workflowservice.SignalWithStartWorkflowExecutionRequest)
	answered, and := reply.(*workflowservice.SignalWithStartWorkflowExecutionResponse)
	if ok && and && answered.GetStarted() && asked.GetWorkflowType().GetName() == incidentWorkflowType {
		t.incidentsStarted.Inc()
	}
	return nil
}

// incidentWorkflowType is the registered name of the incident workflow.
const incidentWorkflowType = "Incident"

// temporalHandler is the SDK's metrics handler.
type temporalHandler struct {
	*TemporalMetrics
	tags map[string]string
}

var _ client.MetricsHandler = temporalHandler{}

// WithTags implements client.MetricsHandler.
func (h temporalHandler) WithTags(tags map[string]string) client.MetricsHandler {
	all := maps.Clone(h.tags)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, tags)
	return temporalHandler{h.TemporalMetrics, all}
}

// Counter implements client.MetricsHandler.
func (h temporalHandler) Counter(name string) client.MetricsCounter {
	c, ok := h.counters[name]
	if !ok {
		return client.MetricsNopHandler.Counter(name)
	}
	return prometheusCounter{c.With(h.boundedLabels(name))}
}

// Gauge implements client.MetricsHandler. It discards values, because every node's worker would overwrite the others'.
func (h temporalHandler) Gauge(name string) client.MetricsGauge {
	return client.MetricsNopHandler.Gauge(name)
}

// Timer implements client.MetricsHandler.
func (h temporalHandler) Timer(name string) client.MetricsTimer {
	o, ok := h.timers[name]
	if !ok {
		return client.MetricsNopHandler.Timer(name)
	}
	return prometheusTimer{o.With(h.boundedLabels(name))}
}

// boundedLabels returns the labels of a metric, with a limited number of values.
func (h temporalHandler) boundedLabels(name string) prometheus.Labels {
	out := prometheus.Labels{}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, label := range h.labels[name] {
		value := labelText(h.tags[label])
		known := h.knownLabelValues[label]
		if known == nil {
			known = map[string]bool{}
			h.knownLabelValues[label] = known
		}
		if !known[value] && len(known) >= maxValuesPerLabel {
			value = otherLabel
		}
		known[value] = true
		out[label] = value
	}
	return out
}

type prometheusCounter struct{ prometheus.Counter }

// Inc implements client.MetricsCounter.
func (c prometheusCounter) Inc(by int64) {
	if by > 0 {
		c.Add(float64(by))
	}
}

type prometheusTimer struct{ prometheus.Observer }

// Record implements client.MetricsTimer.
func (t prometheusTimer) Record(d time.Duration) { t.Observe(d.Seconds()) }
