package aws

import (
	"context"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// QueueMessage is one message of an SQS queue, which stays in the queue until it is deleted.
type QueueMessage struct {
	Body          string
	receiptHandle *string
	// ReceiveCount is how often the message was received.
	ReceiveCount string
}

// Settings for reading a queue. A message that is not deleted is delivered again after visibilityTimeoutSeconds.
const (
	maxMessages              = 10
	receiveWaitSeconds       = 20 // seconds that one call waits for the first message
	visibilityTimeoutSeconds = 90 // seconds
)

// ReceiveMessages waits for messages of a queue. No messages is not an error.
func (a *Account) ReceiveMessages(ctx context.Context, queue string) ([]QueueMessage, error) {
	out, err := a.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl:            &queue,
		MaxNumberOfMessages: maxMessages,
		WaitTimeSeconds:     receiveWaitSeconds,
		VisibilityTimeout:   visibilityTimeoutSeconds,
		MessageSystemAttributeNames: []sqstypes.MessageSystemAttributeName{
			sqstypes.MessageSystemAttributeNameApproximateReceiveCount,
		},
	})
	if err != nil {
		return nil, wrapError(err, "sqs:ReceiveMessage", "read the queue "+queue)
	}
	messages := make([]QueueMessage, 0, len(out.Messages))
	for _, m := range out.Messages {
		messages = append(messages, QueueMessage{
			Body: awssdk.ToString(m.Body), receiptHandle: m.ReceiptHandle,
			ReceiveCount: m.Attributes["ApproximateReceiveCount"],
		})
	}
	return messages, nil
}

// DeleteMessage deletes a processed message from its queue.
func (a *Account) DeleteMessage(ctx context.Context, queue string, m QueueMessage) error {
	if _, err := a.sqs.DeleteMessage(ctx, &sqs.DeleteMessageInput{
		QueueUrl:      &queue,
		ReceiptHandle: m.receiptHandle,
	}); err != nil {
		return wrapError(err, "sqs:DeleteMessage", "delete a message from the queue "+queue)
	}
	return nil
}

// maxEventPages is the maximum number of pages of one lookup. The next lookup, whose time span overlaps, reads the
// rest.
const maxEventPages = 40

// LookupEvents looks up CloudTrail's write events since a time, newest first, and passes each to take. It shares
// CloudTrail's limit of two lookups per second with the actions. complete is false if there are more events than the
// limit.
func (a *Account) LookupEvents(ctx context.Context, since, until time.Time,
	take func(event string) error,
) (complete bool, err error) {
	var next *string
	for range maxEventPages {
		out, err := a.lookUp(ctx, &cloudtrail.LookupEventsInput{
			LookupAttributes: []types.LookupAttribute{{
				AttributeKey:   types.LookupAttributeKeyReadOnly,
				AttributeValue: awssdk.String("false"),
			}},
			StartTime: &since, EndTime: &until, NextToken: next,
		})
		if err != nil {
			return false, err
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
