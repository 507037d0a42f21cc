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

// QueueMessage is one message of a queue, which stays in it until it is deleted.
type QueueMessage struct {
	Body          string
	receiptHandle *string
	// ReceiveCount is how often it was received.
	ReceiveCount string
}

// How a queue is read. A message that nobody deletes comes again after visibilityTimeoutSeconds.
const (
	maxMessages              = 10
	receiveWaitSeconds       = 20 // seconds: one call waits so long for the first
	visibilityTimeoutSeconds = 90 // seconds
)

// ReceiveMessages waits for messages of a queue; none is no error.
func (a *Account) ReceiveMessages(ctx context.Context, queue string) ([]QueueMessage, error) {
	out, err := a.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &queue, MaxNumberOfMessages: maxMessages, WaitTimeSeconds: receiveWaitSeconds, VisibilityTimeout: visibilityTimeoutSeconds,
		MessageSystemAttributeNames: []sqstypes.MessageSystemAttributeName{sqstypes.MessageSystemAttributeNameApproximateReceiveCount},
	})
	if err != nil {
		return nil, wrapError(err, "sqs:ReceiveMessage", "read the queue "+queue)
	}
	messages := make([]QueueMessage, 0, len(out.Messages))
	for _, m := range out.Messages {
		messages = append(messages, QueueMessage{Body: awssdk.ToString(m.Body), receiptHandle: m.ReceiptHandle, ReceiveCount: m.Attributes["ApproximateReceiveCount"]})
	}
	return messages, nil
}

// DeleteMessage takes a message out of its queue: it was dealt with.
func (a *Account) DeleteMessage(ctx context.Context, queue string, m QueueMessage) error {
	if _, err := a.sqs.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &queue, ReceiptHandle: m.receiptHandle}); err != nil {
		return wrapError(err, "sqs:DeleteMessage", "delete a message of the queue "+queue)
	}
	return nil
}

// maxEventPages bounds one look; what is left is found by the next, whose span reaches back over this one's.
const maxEventPages = 40

// LookupEvents looks up what CloudTrail has of changes since a time, the newest first, and hands on each event as it is. It
// keeps to CloudTrail's two lookups a second, which the actions' own lookups share.
func (a *Account) LookupEvents(ctx context.Context, since, until time.Time, take func(event string) error) (complete bool, err error) {
	var next *string
	for range maxEventPages {
		if err := a.lookupLimiter.wait(ctx, lookupInterval); err != nil {
			return false, fmt.Errorf("wait for CloudTrail's rate: %w", err)
		}
		out, err := a.cloudTrail.LookupEvents(ctx, &cloudtrail.LookupEventsInput{
			LookupAttributes: []types.LookupAttribute{{AttributeKey: types.LookupAttributeKeyReadOnly, AttributeValue: awssdk.String("false")}},
			StartTime:        &since, EndTime: &until, NextToken: next,
		})
		a.lookupLimiter.delayNext(lookupInterval)
		if err != nil {
			return false, wrapError(err, "cloudtrail:LookupEvents", "look events up in CloudTrail")
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
