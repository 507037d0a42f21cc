package manifests

// AlertRules are alert rules for Prometheus: conditions in which Stanch cannot detect or act, each with where to look.
// They use only metrics of worker/metrics, which a test checks.
const AlertRules = `# Alert rules for the worker's /metrics: a rule file for Prometheus. Missing telemetry comes first, because
# Stanch cannot alert on what it does not receive.
groups:
  - name: stanch
    rules:
      - alert: StanchNodeMissing
        # With several workers, one of them has a node's stream.
        expr: max by (node) (stanch_node_up) == 0
        for: 5m
        labels: { severity: critical }
        annotations: { summary: "Node {{ $labels.node }} is not connected: run stanch doctor, and read the sensor's log there." }
      - alert: StanchNodeBlind
        expr: stanch_node_heartbeat_healthy == 0
        for: 2m
        labels: { severity: critical }
        annotations: { summary: "The sensor on {{ $labels.node }} is not receiving its own heartbeats: it may have been detached." }
      - alert: StanchEventsDropped
        expr: increase(stanch_node_events_dropped_total[10m]) > 0
        labels: { severity: warning }
        annotations: { summary: "{{ $labels.node }} lost events ({{ $labels.reason }}): stanch incidents shows which containers produced them." }
      - alert: StanchSpoolDropped
        expr: increase(stanch_node_spool_dropped_detections_total[10m]) > 0
        labels: { severity: critical }
        annotations: { summary: "{{ $labels.node }} lost detections: its spool was full while the gateway was unavailable, or they were too large." }
      - alert: StanchRuleFailing
        expr: increase(stanch_node_rule_failed_total[30m]) > 0 or increase(stanch_gateway_rule_failed_total[30m]) > 0
        labels: { severity: warning }
        annotations: { summary: "Rule {{ $labels.rule }} fails on some events: run stanch rules test." }
      - alert: StanchRulesInvalid
        expr: stanch_node_rule_problems > 0
        for: 5m
        labels: { severity: warning }
        annotations: { summary: "{{ $labels.node }} is not using some of its rules: run stanch rules lint." }
      - alert: StanchDetectionsDelayed
        expr: stanch_detections_queued > 1000
        for: 5m
        labels: { severity: critical }
        annotations: { summary: "{{ $value }} detections are waiting for Temporal." }
      - alert: StanchWorkflowTasksFailing
        expr: increase(stanch_temporal_workflow_task_failed_total[10m]) > 0
        labels: { severity: critical }
        annotations: { summary: "{{ $labels.workflow_type }} is stuck ({{ $labels.failure_reason }}): roll back to the previous version; leases do not end in the meantime." }
      - alert: StanchCertificateExpiring
        expr: stanch_node_certificate_expiry_timestamp_seconds - time() < 7 * 86400
        for: 1h
        labels: { severity: warning }
        annotations: { summary: "The certificate of {{ $labels.node }} was not renewed and expires within a week." }
      - alert: StanchClockSkew
        expr: abs(stanch_node_clock_skew_seconds) > 30
        for: 10m
        labels: { severity: warning }
        annotations: { summary: "The clock of {{ $labels.node }} is {{ $value }} seconds off: correct it." }
`
