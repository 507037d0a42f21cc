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

// trailEvidence is `evidence: aws.cloudtrail`.
type trailEvidence struct{ account *Account }

var _ activities.Observer = (*trailEvidence)(nil)

// trailParams are the parameters of aws.cloudtrail.
type trailParams struct {
	Hours int `json:"hours,omitempty" jsonschema:"minimum=1,maximum=168" doc:"how far back from the incident's begin; 2 if not given"`
}

// The bounds: CloudTrail answers two lookups a second and account, and the step must end.
const (
	lookupEvery = 500 * time.Millisecond
	maxLookups  = 16
	maxEvents   = 500
	maxSessions = 6
	maxTrail    = 8 << 20
)

// lateness is what every answer of CloudTrail is to be read with.
const lateness = "CloudTrail tells of management events some minutes late and not of data events: what is not here may still have happened"

func (*trailEvidence) Spec() playbooks.ActionSpec {
	rights := []playbooks.IAMPermission{{Actions: []string{"cloudtrail:LookupEvents"}, Resources: []string{"*"}}}
	return playbooks.ActionSpec{
		Name: "aws.cloudtrail", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve, AttemptTimeout: 25 * time.Second,
		Targets: []playbooks.TargetKind{playbooks.TargetRole, playbooks.TargetUser, playbooks.TargetKey}, Params: trailParams{},
		Doc:       "Keep what CloudTrail has of the role, its sessions, the user or the key; \"none found\" is not \"none happened\".",
		PlanIAMPermissions: rights, ApplyIAMPermissions: rights,
	}
}

// trailHead is the first line of the evidence: what was asked and how complete the answer is.
type trailHead struct {
	Target   string    `json:"target"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Lookups  []string  `json:"lookups"`
	Events   int       `json:"events"`
	Complete bool      `json:"complete"` // of what CloudTrail had at the time
	Caveat   string    `json:"caveat"`
}

// search is one lookup under way.
type search struct {
	account *Account
	head    trailHead
	calls   int
	seen    map[string]bool
	body    bytes.Buffer
	keys    []string // of sessions that the role gave out, the newest first
}

// Observe looks up events: of a role, those that name it, and then what its newest sessions did.
func (a *trailEvidence) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	if err := a.account.ready(); err != nil {
		return activities.Observation{}, err
	}
	params, err := activities.Params[trailParams](r)
	if err != nil {
		return activities.Observation{}, err
	}
	if params.Hours == 0 {
		params.Hours = 2
	}
	now, begin := time.Now(), r.Incident.Opened
	if begin.IsZero() || begin.After(now) {
		begin = now
	}
	s := &search{account: a.account, seen: map[string]bool{}, head: trailHead{
		Target: r.Target.ID(), From: begin.Add(-time.Duration(params.Hours) * time.Hour).UTC(), To: now.UTC(), Complete: true, Caveat: lateness,
	}}
	switch r.Target.Kind {
	case playbooks.TargetRole:
		err = s.lookup(ctx, types.LookupAttributeKeyResourceName, r.Target.ARN)
		if err == nil {
			err = s.lookup(ctx, types.LookupAttributeKeyResourceName, r.Target.Name)
		}
		for i := 0; i < min(len(s.keys), maxSessions) && err == nil; i++ {
			err = s.lookup(ctx, types.LookupAttributeKeyAccessKeyId, s.keys[i])
		}
		s.head.Complete = s.head.Complete && len(s.keys) <= maxSessions
	case playbooks.TargetUser:
		err = s.lookup(ctx, types.LookupAttributeKeyUsername, r.Target.Name)
	case playbooks.TargetKey:
		err = s.lookup(ctx, types.LookupAttributeKeyAccessKeyId, r.Target.UID)
	default:
		return activities.Observation{}, activities.Refuse("%s is neither a role nor a user nor a key: take the target from `enrich: aws.identity`", r.Target)
	}
	if err != nil && s.head.Events == 0 {
		return activities.Observation{}, err
	}
	note := fmt.Sprintf("%d events from %s on. %s", s.head.Events, s.head.From.Format(time.RFC3339), lateness)
	if err != nil { // what was found before is kept
		s.head.Complete = false
		note += "; the lookup broke off: " + clip(err.Error(), 200)
	} else if !s.head.Complete {
		note += "; there are more than the bounds of this step let it read"
	}
	head, err := json.Marshal(s.head)
	if err != nil {
		return activities.Observation{}, fmt.Errorf("write the evidence: %w", err)
	}
	return activities.Observation{Note: note, Pieces: []activities.Piece{{
		Name: "cloudtrail-" + string(r.Target.Kind) + "-" + r.Target.Name + ".jsonl", Data: slices.Concat(head, []byte("\n"), s.body.Bytes()),
	}}}, nil
}

// lookup reads all pages of one question, within the bounds and CloudTrail's rate.
func (s *search) lookup(ctx context.Context, key types.LookupAttributeKey, value string) error {
	if value == "" {
		return nil
	}
	s.head.Lookups = append(s.head.Lookups, fmt.Sprintf("%s=%s", key, value))
	var next *string
	for {
		if s.calls >= maxLookups || s.head.Events >= maxEvents || s.body.Len() >= maxTrail {
			s.head.Complete = false
			return nil
		}
		s.calls++
		if err := s.account.rate.wait(ctx, lookupEvery); err != nil {
			return fmt.Errorf("wait for CloudTrail's rate: %w", err)
		}
		out, err := s.account.trail.LookupEvents(ctx, &cloudtrail.LookupEventsInput{
			LookupAttributes: []types.LookupAttribute{{AttributeKey: key, AttributeValue: &value}},
			StartTime:        &s.head.From, EndTime: &s.head.To, NextToken: next,
		})
		s.account.rate.answered(lookupEvery)
		if err != nil {
			return fail(err, "cloudtrail:LookupEvents", "look events up in CloudTrail")
		}
		for _, e := range out.Events {
			s.take(e)
		}
		if next = out.NextToken; awssdk.ToString(next) == "" {
			return nil
		}
	}
}

// take keeps one event, once, without the session token that it may hold.
func (s *search) take(e types.Event) {
	id := awssdk.ToString(e.EventId)
	if s.seen[id] || s.head.Events >= maxEvents {
		return
	}
	s.seen[id] = true
	var event map[string]any
	if json.Unmarshal([]byte(awssdk.ToString(e.CloudTrailEvent)), &event) != nil {
		event = map[string]any{"eventID": id, "eventName": awssdk.ToString(e.EventName), "eventTime": e.EventTime, "unreadable": true}
	}
	if response, ok := event["responseElements"].(map[string]any); ok {
		if made, ok := response["credentials"].(map[string]any); ok {
			if _, ok := made["sessionToken"]; ok {
				made["sessionToken"] = "(redacted)"
			}
			if key, ok := made["accessKeyId"].(string); ok && !slices.Contains(s.keys, key) {
				s.keys = append(s.keys, key)
			}
		}
	}
	line, err := json.Marshal(event)
	if err != nil {
		return
	}
	s.head.Events++
	s.body.Write(line)
	s.body.WriteByte('\n')
}
