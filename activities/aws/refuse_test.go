package aws_test

import (
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/activities/aws"
	"stanch/playbooks"
)

func TestActionsWithoutAccountNameTheRemedy(t *testing.T) {
	require.NotEmpty(t, aws.Actions(nil, nil))
	for _, a := range aws.Actions(nil, nil) {
		name := a.Spec().Name
		var err error
		if observer, ok := a.(activities.Observer); ok {
			_, err = observer.Observe(t.Context(), newLeaseRequest(name, playbooks.Target{Kind: playbooks.TargetPod, UID: "u"},
				time.Hour, ""))
		} else {
			_, err = a.(activities.Containment).Plan(t.Context(),
				newLeaseRequest(name, playbooks.Target{Kind: playbooks.TargetPod, UID: "u"}, time.Hour, ""))
		}
		wantRefusal(t, err, "AWS is not configured; add `aws:` to stanch.yaml")
	}
}

func TestOversizedPolicyIsRefusedInPlan(t *testing.T) {
	w := newFixture(t, nil)
	user, _ := w.createUser("u")
	big := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::` +
		longString(1900) + `"}]}`
	_, err := w.iam.PutUserPolicy(t.Context(), &iam.PutUserPolicyInput{
		UserName:   &user.Name,
		PolicyName: awssdk.String("big"), PolicyDocument: &big,
	})
	require.NoError(t, err)
	_, err = w.findContainment("aws.user.deny").Plan(t.Context(), newLeaseRequest("aws.user.deny", user, time.Hour, ""))
	wantRefusal(t, err, "allows 2048 in total")
}

func longString(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a'
	}
	return string(b)
}
