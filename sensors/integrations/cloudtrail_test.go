package integrations_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/integrations"
)

func cloudTrailJSON(name, source, identity, more string) string {
	return fmt.Sprintf(
		`{"eventVersion":"1.11","userIdentity":%s,"eventTime":"2026-11-23T03:00:00Z","eventSource":%q,"eventName":%q,"awsRegion":"eu-central-1","sourceIPAddress":"203.0.113.7","userAgent":"aws-cli/2","eventID":"e-1","readOnly":false,"recipientAccountId":"123456789012"%s}`,
		identity,
		source,
		name,
		more,
	)
}

const assumedRoleJSON = `{"type":"AssumedRole","principalId":"AROAEXAMPLE:eks-shop-web-1-0f7a","arn":"arn:aws:sts::123456789012:assumed-role/web/eks-shop-web-1-0f7a","accountId":"123456789012","accessKeyId":"ASIAEXAMPLE",
"sessionContext":{"sessionIssuer":{"type":"Role","principalId":"AROAEXAMPLE","arn":"arn:aws:iam::123456789012:role/service/web","userName":"web"},"attributes":{"creationDate":"2026-11-23T02:00:00Z","mfaAuthenticated":"false"}}}`

var trailLines = []string{
	cloudTrailJSON(
		"GetObject",
		"s3.amazonaws.com",
		assumedRoleJSON,
		`,"requestParameters":{"bucketName":"payroll","key":"2026/a.csv","x":["PLANTED"]},"responseElements":null,"resources":[{"ARN":"arn:aws:s3:::payroll","accountId":"1"}]`,
	),
	cloudTrailJSON(
		"CreateAccessKey",
		"iam.amazonaws.com",
		`{"type":"IAMUser","principalId":"AIDA","arn":"arn:aws:iam::123456789012:user/alice","userName":"alice","sessionContext":{"attributes":{"mfaAuthenticated":"true"}}}`,
		`,"requestParameters":{"userName":"bob"},"responseElements":{"accessKey":{"accessKeyId":"AKIANEW","secretAccessKey":"PLANTED"}}`,
	),
	cloudTrailJSON(
		"AssumeRole",
		"sts.amazonaws.com",
		`{"type":"AWSService","invokedBy":"pods.eks.amazonaws.com"}`,
		`,"requestParameters":{"roleArn":"arn:aws:iam::1:role/web","tags":[{"key":"eks-cluster-name","value":"shop"},{"key":"kubernetes-namespace","value":"web"},{"key":"kubernetes-service-account","value":"web"},{"key":"kubernetes-pod-name","value":"web-1"},{"key":"kubernetes-pod-uid","value":"uid-1"}],"password":"PLANTED"},"responseElements":{"credentials":{"accessKeyId":"ASIANEW","sessionToken":"PLANTED"}}`,
	),
	cloudTrailJSON(
		"AssumeRoleWithWebIdentity",
		"sts.amazonaws.com",
		`{"type":"WebIdentityUser","principalId":"arn:aws:iam::1:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/A1:sts.amazonaws.com:system:serviceaccount:shop:web","userName":"system:serviceaccount:shop:web","identityProvider":"arn:aws:iam::1:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/A1"}`,
		`,"requestParameters":"PLANTED"`,
	),
}

func TestCloudTrailCallBecomesEvent(t *testing.T) {
	one := func(text string) sensors.Event {
		all, err := integrations.DecodeCloudTrail([]byte(text))
		require.NoError(t, err)
		require.Len(t, all, 1)
		raw, err := json.Marshal(all[0])
		require.NoError(t, err)
		require.NotContains(t, string(raw), "PLANTED")
		return all[0]
	}
	e := one(trailLines[0])
	require.Equal(t, "cloudtrail/e-1", e.ID)
	require.Equal(t, "aws:arn:aws:sts::123456789012:assumed-role/web/eks-shop-web-1-0f7a", e.Actor)
	require.Equal(t, sensors.Cloud{
		Provider: "aws", Service: "s3.amazonaws.com", EventName: "GetObject", Region: "eu-central-1", Account: "123456789012",
		Principal:   "arn:aws:sts::123456789012:assumed-role/web/eks-shop-web-1-0f7a",
		PrincipalID: "AROAEXAMPLE:eks-shop-web-1-0f7a", PrincipalType: "AssumedRole", Role: "web", RoleID: "AROAEXAMPLE",
		SessionName: "eks-shop-web-1-0f7a", AccessKeyID: "ASIAEXAMPLE",
		SourceIP: "203.0.113.7", UserAgent: "aws-cli/2", Resources: []string{
			"arn:aws:s3:::payroll",
			"arn:aws:s3:::payroll/2026/a.csv",
		},
	}, e.Cloud)
	e = one(trailLines[1])
	require.True(t, e.Cloud.MFA)
	require.Equal(t, "bob", e.Cloud.TargetPrincipal)
	require.Equal(t, []string{"AKIANEW"}, e.Cloud.Resources, "the ID of the key, but not its secret")
	e = one(trailLines[2])
	require.Equal(t, []string{"shop", "web", "web", "web-1", "uid-1"}, []string{
		e.Cloud.Cluster, e.Cloud.Namespace,
		e.Cloud.ServiceAccount, e.Cloud.Pod, e.Cloud.PodUID,
	})
	require.Contains(t, e.Cloud.Resources, "ASIANEW")
	require.Equal(t, []string{"/db/password"}, one(cloudTrailJSON("GetParameter", "ssm.amazonaws.com", assumedRoleJSON,
		`,"requestParameters":{"name":"/db/password"}`)).Cloud.Resources)
	require.Equal(t, []string{"a", "b"}, one(cloudTrailJSON("BatchGetSecretValue", "secretsmanager.amazonaws.com",
		assumedRoleJSON, `,"requestParameters":{"secretIdList":["b","a"]}`)).Cloud.Resources)
	e = one(trailLines[3])
	require.Equal(t, []string{"shop", "web"}, []string{e.Cloud.Namespace, e.Cloud.ServiceAccount})
}

func TestPodOfSessionIsAcceptedOnlyFromEKS(t *testing.T) {
	refused := `,"errorCode":"AccessDenied","requestParameters":`
	for name, text := range map[string]string{
		"tags set by a user": strings.Replace(trailLines[2],
			`{"type":"AWSService","invokedBy":"pods.eks.amazonaws.com"}`, assumedRoleJSON, 1),
		"through another service": strings.Replace(trailLines[2], `"invokedBy":"pods.eks.amazonaws.com"`,
			`"invokedBy":"lambda.amazonaws.com"`, 1),
		"user with that name": strings.Replace(trailLines[2], `"type":"AWSService"`, `"type":"AssumedRole"`, 1),
		"other identity provider": strings.NewReplacer("oidc.eks.eu-central-1.amazonaws.com/id/A1",
			"login.example.com").Replace(trailLines[3]),
		"rejected tags":    strings.Replace(trailLines[2], `,"requestParameters":`, refused, 1),
		"rejected account": strings.Replace(trailLines[3], `,"requestParameters":`, refused, 1),
		"another service's event": strings.Replace(trailLines[2], `"eventSource":"sts.amazonaws.com"`,
			`"eventSource":"example.amazonaws.com"`, 1),
	} {
		require.NotContains(t, trailLines, text, name)
		all, err := integrations.DecodeCloudTrail([]byte(text))
		require.NoError(t, err, name)
		c := all[0].Cloud
		require.Empty(t, c.Cluster+c.Namespace+c.ServiceAccount+c.Pod+c.PodUID, name)
	}
}

func TestDecodeCloudTrailAcceptsAllEnvelopes(t *testing.T) {
	quoted := func(s string) string { raw, _ := json.Marshal(s); return string(raw) }
	bridge := `{"version":"0","id":"b-1","detail-type":"AWS API Call via CloudTrail","source":"aws.s3","detail":` +
		trailLines[0] + `}`
	for name, text := range map[string]string{
		"a file":             `{"Records":[` + trailLines[0] + `]}`,
		"EventBridge":        bridge,
		"SNS in SQS":         `{"Type":"Notification","MessageId":"m","Message":` + quoted(trailLines[0]) + `}`,
		"EventBridge by SNS": `{"Type":"Notification","Message":` + quoted(bridge) + `}`,
	} {
		all, err := integrations.DecodeCloudTrail([]byte(text))
		require.NoError(t, err, name)
		require.Len(t, all, 1, name)
		require.Equal(t, "GetObject", all[0].Cloud.EventName)
	}
	all, err := integrations.DecodeCloudTrail([]byte(`{"Event":"s3:TestEvent"}`))
	require.NoError(t, err)
	require.Empty(t, all)
	all, err = integrations.DecodeCloudTrail([]byte(`{"Records":[` + trailLines[0] + `,{"eventID":"x"},` + trailLines[1] +
		`]}`))
	require.ErrorContains(t, err, "1 of 3 records are invalid; the first: record 2: invalid CloudTrail record")
	require.Len(t, all, 2)
	nested := bridge
	for range 5 {
		nested = `{"detail":` + nested + `}`
	}
	for text, want := range map[string]string{
		`{"Records":[{"eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{}}]}`: "a file in S3",
		`{"s3Bucket":"b","s3ObjectKey":["k"]}`:                                           "a CloudTrail file in S3",
		`{}`:                                                                             "invalid CloudTrail record: missing eventID", `x`: "not a JSON object", nested: "too many nested envelopes",
		strings.Replace(trailLines[0], "2026-11-23T03:00:00Z", "soon", 1): "missing or invalid time",
	} {
		_, err := integrations.DecodeCloudTrail([]byte(text))
		require.ErrorContains(t, err, want)
	}
}

func FuzzDecodeCloudTrail(f *testing.F) {
	for _, text := range trailLines {
		f.Add([]byte(text))
	}
	fuzzEventDecoder(f, integrations.DecodeCloudTrail)
}
