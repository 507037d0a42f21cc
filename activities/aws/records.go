package aws

import (
	"context"
	"fmt"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// Message is one message of a queue, which stays in it until it is deleted.
type Message struct {
	Body    string
	receipt *string
	// Times is how often it was received.
	Times string
}

// How a queue is read. A message that nobody deletes comes again after messageHidden.
const (
	maxMessages   = 10
	messageWait   = 20 // seconds: one call waits so long for the first
	messageHidden = 90 // seconds
)

// Receive waits for messages of a queue; none is no error.
func (a *Account) Receive(ctx context.Context, queue string) ([]Message, error) {
	out, err := a.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &queue, MaxNumberOfMessages: maxMessages, WaitTimeSeconds: messageWait, VisibilityTimeout: messageHidden,
		MessageSystemAttributeNames: []sqstypes.MessageSystemAttributeName{sqstypes.MessageSystemAttributeNameApproximateReceiveCount},
	})
	if err != nil {
		return nil, fail(err, "sqs:ReceiveMessage", "read the queue "+queue)
	}
	messages := make([]Message, 0, len(out.Messages))
	for _, m := range out.Messages {
		messages = append(messages, Message{Body: awssdk.ToString(m.Body), receipt: m.ReceiptHandle, Times: m.Attributes["ApproximateReceiveCount"]})
	}
	return messages, nil
}

// Delete takes a message out of its queue: it was dealt with.
func (a *Account) Delete(ctx context.Context, queue string, m Message) error {
	if _, err := a.sqs.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &queue, ReceiptHandle: m.receipt}); err != nil {
		return fail(err, "sqs:DeleteMessage", "delete a message of the queue "+queue)
	}
	return nil
}

// maxRecordPages bounds one look; what is left is found by the next, whose span reaches back over this one's.
const maxRecordPages = 40

// Records looks up what CloudTrail has of changes since a time, the newest first, and hands on each event as it is. It
// keeps to CloudTrail's two lookups a second, which the actions' own lookups share.
func (a *Account) Records(ctx context.Context, since, until time.Time, take func(event string) error) (complete bool, err error) {
	var next *string
	for range maxRecordPages {
		if err := a.rate.wait(ctx, lookupEvery); err != nil {
			return false, fmt.Errorf("wait for CloudTrail's rate: %w", err)
		}
		out, err := a.trail.LookupEvents(ctx, &cloudtrail.LookupEventsInput{
			LookupAttributes: []types.LookupAttribute{{AttributeKey: types.LookupAttributeKeyReadOnly, AttributeValue: awssdk.String("false")}},
			StartTime:        &since, EndTime: &until, NextToken: next,
		})
		a.rate.answered(lookupEvery)
		if err != nil {
			return false, fail(err, "cloudtrail:LookupEvents", "look events up in CloudTrail")
		}
		for _, e := range out.Events {
			if err := take(awssdk.ToString(e.CloudTrailEvent)); err != nil {
				return false, err
			}
		}
		if next = out.NextToken; awssdk.ToString(next) == "" {
			return true, nil
		}
	}
	return false, nil
}
