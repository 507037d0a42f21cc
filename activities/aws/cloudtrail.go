package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail/types"

	"stanch/activities"
	"stanch/playbooks"
)

// cloudTrailEvidence is `evidence: aws.cloudtrail`.
type cloudTrailEvidence struct{ account *Account }

var _ activities.Observer = (*cloudTrailEvidence)(nil)

// cloudTrailParams are the parameters of aws.cloudtrail.
type cloudTrailParams struct {
	Hours int `json:"hours,omitempty" jsonschema:"minimum=1,maximum=168" doc:"how many hours before the start of the incident to search; default 2"`
}

// Limits: CloudTrail allows two lookups per second and account, and the step must end.
const (
	lookupInterval   = 500 * time.Millisecond
	maxLookups       = 16
	maxEvents        = 500
	maxSessions      = 6
	maxEvidenceBytes = 8 << 20
)

// deliveryDelayCaveat is part of every result from CloudTrail.
const deliveryDelayCaveat = "CloudTrail delivers management events with a delay of a few minutes, and does not deliver data events; events that are not listed here may still have happened"

func (*cloudTrailEvidence) Spec() playbooks.ActionSpec {
	rights := []playbooks.IAMPermission{{Actions: []string{"cloudtrail:LookupEvents"}, Resources: []string{"*"}}}
	return playbooks.ActionSpec{
		Name:                "aws.cloudtrail",
		Verb:                playbooks.VerbEvidence,
		Class:               playbooks.ClassObserve,
		AttemptTimeout:      25 * time.Second,
		Targets:             []playbooks.TargetKind{playbooks.TargetRole, playbooks.TargetUser, playbooks.TargetKey},
		Params:              cloudTrailParams{},
		Doc:                 "Capture CloudTrail events about the role, its sessions, the user or the key; \"none found\" does not mean \"none happened\".",
		PlanIAMPermissions:  rights,
		ApplyIAMPermissions: rights,
	}
}

// evidenceHeader is the first line of the evidence: the query and whether the result is complete.
type evidenceHeader struct {
	Target   string    `json:"target"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Lookups  []string  `json:"lookups"`
	Events   int       `json:"events"`
	Complete bool      `json:"complete"` // for the events that CloudTrail had at the time
	Caveat   string    `json:"caveat"`
}

// trailSearch is one lookup in progress.
type trailSearch struct {
	account       *Account
	header        evidenceHeader
	lookupCount   int
	seenEventIDs  map[string]bool
	output        bytes.Buffer
	sessionKeyIDs []string // of sessions of the role, newest first
}

// Observe looks up events: for a role, those that name it, and then what its newest sessions did.
func (a *cloudTrailEvidence) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	if err := a.account.checkConfigured(); err != nil {
		return activities.Observation{}, err
	}
	params, err := activities.DecodeParams[cloudTrailParams](r)
	if err != nil {
		return activities.Observation{}, err
	}
	if params.Hours == 0 {
		params.Hours = 2
	}
	now, begin := time.Now(), r.IncidentRef.Opened
	if begin.IsZero() || begin.After(now) {
		begin = now
	}
	s := &trailSearch{account: a.account, seenEventIDs: map[string]bool{}, header: evidenceHeader{
		Target: r.Target.ID(), From: begin.Add(-time.Duration(params.Hours) * time.Hour).UTC(), To: now.UTC(), Complete: true,
		Caveat: deliveryDelayCaveat,
	}}
	switch r.Target.Kind {
	case playbooks.TargetRole:
		err = s.lookup(ctx, types.LookupAttributeKeyResourceName, r.Target.ARN)
		if err == nil {
			err = s.lookup(ctx, types.LookupAttributeKeyResourceName, r.Target.Name)
		}
		for i := 0; i < min(len(s.sessionKeyIDs), maxSessions) && err == nil; i++ {
			err = s.lookup(ctx, types.LookupAttributeKeyAccessKeyId, s.sessionKeyIDs[i])
		}
		s.header.Complete = s.header.Complete && len(s.sessionKeyIDs) <= maxSessions
	case playbooks.TargetUser:
		err = s.lookup(ctx, types.LookupAttributeKeyUsername, r.Target.Name)
	case playbooks.TargetKey:
		err = s.lookup(ctx, types.LookupAttributeKeyAccessKeyId, r.Target.UID)
	default:
		return activities.Observation{}, activities.Refusef(
			"%s is not a role, user or access key; use a target from `enrich: aws.identity`",
			r.Target,
		)
	}
	if err != nil && s.header.Events == 0 {
		return activities.Observation{}, err
	}
	note := fmt.Sprintf("%d events since %s. %s", s.header.Events, s.header.From.Format(time.RFC3339), deliveryDelayCaveat)
	if err != nil { // events found before are kept
		s.header.Complete = false
		note += "; the lookup failed: " + plainText(err.Error(), 200)
	} else if !s.header.Complete {
		note += "; more events exist, but the limit of this step is reached"
	}
	head, err := json.Marshal(s.header)
	if err != nil {
		return activities.Observation{}, fmt.Errorf("encode the evidence: %w", err)
	}
	return activities.Observation{MissingNote: note, Artifacts: []activities.Artifact{{
		Name: "cloudtrail-" + string(r.Target.Kind) + "-" + r.Target.Name + ".jsonl", Data: slices.Concat(head, []byte("\n"),
			s.output.Bytes()),
	}}}, nil
}

// lookup reads all pages of one query, within the limits and CloudTrail's rate.
func (s *trailSearch) lookup(ctx context.Context, key types.LookupAttributeKey, value string) error {
	if value == "" {
		return nil
	}
	s.header.Lookups = append(s.header.Lookups, fmt.Sprintf("%s=%s", key, value))
	var next *string
	for {
		if s.lookupCount >= maxLookups || s.header.Events >= maxEvents || s.output.Len() >= maxEvidenceBytes {
			s.header.Complete = false
			return nil
		}
		s.lookupCount++
		out, err := s.account.lookUp(ctx, &cloudtrail.LookupEventsInput{
			LookupAttributes: []types.LookupAttribute{{AttributeKey: key, AttributeValue: &value}},
			StartTime:        &s.header.From, EndTime: &s.header.To, NextToken: next,
		})
		if err != nil {
			return err
		}
		for _, e := range out.Events {
			s.addEvent(e)
		}
		if next = out.NextToken; awssdk.ToString(next) == "" {
			return nil
		}
	}
}

// addEvent adds an event once, without the session token that it may contain.
func (s *trailSearch) addEvent(e types.Event) {
	id := awssdk.ToString(e.EventId)
	if s.seenEventIDs[id] || s.header.Events >= maxEvents {
		return
	}
	s.seenEventIDs[id] = true
	var event map[string]any
	if json.Unmarshal([]byte(awssdk.ToString(e.CloudTrailEvent)), &event) != nil {
		event = map[string]any{
			"eventID": id, "eventName": awssdk.ToString(e.EventName), "eventTime": e.EventTime,
			"unreadable": true,
		}
	}
	if response, ok := event["responseElements"].(map[string]any); ok {
		if made, ok := response["credentials"].(map[string]any); ok {
			if _, ok := made["sessionToken"]; ok {
				made["sessionToken"] = "(redacted)"
			}
			if key, ok := made["accessKeyId"].(string); ok && !slices.Contains(s.sessionKeyIDs, key) {
				s.sessionKeyIDs = append(s.sessionKeyIDs, key)
			}
		}
	}
	line, err := json.Marshal(event)
	if err != nil {
		return
	}
	s.header.Events++
	s.output.Write(line)
	s.output.WriteByte('\n')
}
