package integrations

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"stanch/sensors"
	"stanch/sensors/truncate"
)

// cloudTrailRecord is the part of a CloudTrail record that Stanch reads. Of the request and response it contains only
// names and IDs: it has no field for a password, a policy document or a session secret.
type cloudTrailRecord struct {
	EventID      string    `json:"eventID"`
	EventTime    timestamp `json:"eventTime"`
	EventSource  string    `json:"eventSource"`
	EventName    string    `json:"eventName"`
	Region       string    `json:"awsRegion"`
	SourceIP     string    `json:"sourceIPAddress"`
	UserAgent    string    `json:"userAgent"`
	ErrorCode    string    `json:"errorCode"`
	ErrorMessage string    `json:"errorMessage"`
	ReadOnly     scalar    `json:"readOnly"`
	RecipientID  string    `json:"recipientAccountId"`
	UserIdentity struct {
		Type           string `json:"type"`
		PrincipalID    string `json:"principalId"`
		ARN            string `json:"arn"`
		AccountID      string `json:"accountId"`
		AccessKeyID    string `json:"accessKeyId"`
		UserName       string `json:"userName"`
		InvokedBy      string `json:"invokedBy"`
		Provider       string `json:"identityProvider"`
		SessionContext struct {
			SessionIssuer struct {
				Type        string `json:"type"`
				PrincipalID string `json:"principalId"`
				ARN         string `json:"arn"`
				UserName    string `json:"userName"`
			} `json:"sessionIssuer"`
			Attributes struct {
				MFA scalar `json:"mfaAuthenticated"`
			} `json:"attributes"`
		} `json:"sessionContext"`
	} `json:"userIdentity"`
	Request   cloudTrailRequest  `json:"requestParameters"`
	Response  cloudTrailResponse `json:"responseElements"`
	Resources []struct {
		ARN string `json:"ARN"`
	} `json:"resources"`
	Additional cloudTrailAdditional `json:"additionalEventData"`
	// ServiceDetails contain the outcome of IAM Identity Center events, by event name.
	ServiceDetails cloudTrailServiceDetails `json:"serviceEventDetails"`
	// S3 is set if the JSON is an S3 event notification and not a CloudTrail record.
	S3 *json.RawMessage `json:"s3"`
}

// cloudTrailRequest contains the names in a request.
type cloudTrailRequest struct {
	BucketName   scalar          `json:"bucketName"`
	Key          scalar          `json:"key"`
	RoleName     scalar          `json:"roleName"`
	UserName     scalar          `json:"userName"`
	GroupName    scalar          `json:"groupName"`
	PolicyName   scalar          `json:"policyName"`
	PolicyARN    scalar          `json:"policyArn"`
	RoleARN      scalar          `json:"roleArn"`
	SecretID     scalar          `json:"secretId"`
	FunctionName scalar          `json:"functionName"`
	InstanceID   scalar          `json:"instanceId"`
	KeyID        scalar          `json:"keyId"`
	TableName    scalar          `json:"tableName"`
	TrailName    scalar          `json:"trailName"`
	Name         scalar          `json:"name"`
	AccessKeyID  scalar          `json:"accessKeyId"`
	Names        []scalar        `json:"names"`
	SecretIDList []scalar        `json:"secretIdList"`
	Tags         json.RawMessage `json:"tags"`
}

type cloudTrailResponse struct {
	// The outcome of logins, which have no errorCode. See the sign-in events in the CloudTrail user guide.
	ConsoleLogin              scalar `json:"ConsoleLogin"`
	CheckMfa                  scalar `json:"CheckMfa"`
	SwitchRole                scalar `json:"SwitchRole"`
	ExitRole                  scalar `json:"ExitRole"`
	RenewRole                 scalar `json:"RenewRole"`
	PasswordRecoveryRequested scalar `json:"PasswordRecoveryRequested"`
	PasswordRecoveryCompleted scalar `json:"PasswordRecoveryCompleted"`
	UserAuthentication        scalar `json:"UserAuthentication"`
	CredentialVerification    scalar `json:"CredentialVerification"`
	CredentialChallenge       scalar `json:"CredentialChallenge"`
	GetSigninToken            scalar `json:"GetSigninToken"`

	Credentials struct {
		AccessKeyID string `json:"accessKeyId"`
	} `json:"credentials"`
	AccessKey struct {
		AccessKeyID string `json:"accessKeyId"`
	} `json:"accessKey"`
}

// cloudTrailAdditional contains the outcome of a login and whether a second factor was used.
type cloudTrailAdditional struct {
	MFAUsed     scalar `json:"MFAUsed"`
	LoginResult scalar `json:"LoginResult"`
}

type cloudTrailServiceDetails map[string]scalar

// UnmarshalJSON ignores details of another shape.
func (r *cloudTrailServiceDetails) UnmarshalJSON(raw []byte) error {
	type plain map[string]scalar
	var p plain
	if json.Unmarshal(raw, &p) == nil {
		*r = cloudTrailServiceDetails(p)
	}
	return nil
}

// UnmarshalJSON ignores additional data of another shape.
func (r *cloudTrailAdditional) UnmarshalJSON(raw []byte) error {
	type plain cloudTrailAdditional
	_ = json.Unmarshal(raw, (*plain)(r))
	return nil
}

// UnmarshalJSON ignores response elements of another shape.
func (r *cloudTrailResponse) UnmarshalJSON(raw []byte) error {
	type plain cloudTrailResponse
	_ = json.Unmarshal(raw, (*plain)(r))
	return nil
}

// UnmarshalJSON ignores request parameters of another shape.
func (r *cloudTrailRequest) UnmarshalJSON(raw []byte) error {
	type plain cloudTrailRequest
	_ = json.Unmarshal(raw, (*plain)(r))
	return nil
}

// The limits of CloudTrail input. MaxCloudTrailBytes is the maximum size in bytes (32 MiB); a file in S3 is the
// largest input.
const (
	MaxCloudTrailBytes  = 32 << 20
	maxCloudTrailEvents = 20_000
	maxEnvelopeDepth    = 4
)

// DecodeCloudTrail decodes a CloudTrail record, a file of records ({"Records":[…]}), an EventBridge event
// ({"detail":{…}}), and any of these inside an SNS notification as delivered by SQS. It returns the events that it can
// decode together with an error for the others, which is a *BatchDecodeError if the envelope is valid and records in
// it are not.
func DecodeCloudTrail(raw []byte) ([]sensors.Event, error) { return decodeCloudTrailEnvelope(raw, 0) }

func decodeCloudTrailEnvelope(raw []byte, depth int) ([]sensors.Event, error) {
	if depth > maxEnvelopeDepth {
		return nil, errors.New("invalid CloudTrail record: too many nested envelopes")
	}
	if len(raw) > MaxCloudTrailBytes {
		return nil,
			fmt.Errorf("invalid CloudTrail record: it is %d bytes long; the maximum is %d", len(raw), MaxCloudTrailBytes)
	}
	envelope, err := splitJSONObject(raw)
	if err != nil {
		return nil, fmt.Errorf("invalid CloudTrail record: %w", err)
	}
	text := func(name string) (s string) {
		_ = json.Unmarshal(envelope[name], &s)
		return s
	}
	records := [][]byte{raw}
	switch {
	case text("Type") == "Notification" && text("Message") != "": // SNS
		return decodeCloudTrailEnvelope([]byte(text("Message")), depth+1)
	case len(envelope["detail"]) > 0:
		return decodeCloudTrailEnvelope(envelope["detail"], depth+1)
	case text("Event") == "s3:TestEvent":
		return nil, nil
	case text("s3Bucket") != "":
		return nil, errors.New("this is a notification about a CloudTrail file in S3; send the file itself")
	case envelope["Records"] != nil:
		if records, err = splitJSONArray(envelope["Records"]); err != nil {
			return nil, fmt.Errorf("invalid CloudTrail file: %w", err)
		}
		if len(records) > maxCloudTrailEvents {
			return nil, fmt.Errorf("%d records at once; the maximum is %d", len(records), maxCloudTrailEvents)
		}
	}
	var out []sensors.Event
	var unread BatchDecodeError
	for i, record := range records {
		e, err := decodeCloudTrailRecord(record)
		if err != nil {
			unread.add(fmt.Errorf("record %d: %w", i+1, err))
			continue
		}
		out = append(out, e)
	}
	return out, unread.orNilFor(len(records))
}

func decodeCloudTrailRecord(raw []byte) (sensors.Event, error) {
	if err := checkJSONLimits(raw, MaxCloudTrailBytes, maxAuditDepth, maxAuditValues); err != nil {
		return sensors.Event{}, err
	}
	var r cloudTrailRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return sensors.Event{}, fmt.Errorf("decode: %w", err)
	}
	u := r.UserIdentity
	principal := orDefault(orDefault(u.ARN, u.InvokedBy), orDefault(u.PrincipalID, u.UserName))
	switch {
	case r.S3 != nil:
		return sensors.Event{}, errors.New("this is a notification about a file in S3; send the file itself")
	case r.EventID == "" || r.EventName == "" || r.EventSource == "":
		return sensors.Event{}, errors.New("invalid CloudTrail record: missing eventID, eventName or eventSource")
	case !isPlausibleTime(r.EventTime.Time):
		return sensors.Event{}, errors.New("missing or invalid time")
	case len(r.EventID) > 128 || len(r.EventName) > maxIdentifierBytes || len(r.EventSource) > maxIdentifierBytes:
		return sensors.Event{}, errors.New("eventID, eventName or eventSource is too long")
	}
	c := sensors.Cloud{
		Provider: "aws", Service: r.EventSource, EventName: r.EventName, Region: truncate.Bytes(r.Region, 64),
		Account:   truncate.Bytes(orDefault(u.AccountID, r.RecipientID), 64),
		Principal: principal, PrincipalID: truncate.Bytes(u.PrincipalID, maxMessageBytes),
		PrincipalType: truncate.Bytes(u.Type, 64), AccessKeyID: truncate.Bytes(u.AccessKeyID, 64),
		SourceIP: truncate.Bytes(r.SourceIP, maxIdentifierBytes), UserAgent: truncate.Bytes(r.UserAgent,
			maxMessageBytes), ErrorCode: truncate.Bytes(r.failureReason(), maxIdentifierBytes), ReadOnly: r.ReadOnly.bool(),
		MFA: u.SessionContext.Attributes.MFA.bool() || r.Additional.MFAUsed == "Yes",
	}
	c.Role, c.SessionName = roleOf(u.ARN)
	if issuer := u.SessionContext.SessionIssuer; issuer.Type == "Role" {
		c.Role, c.RoleID = orDefault(issuer.UserName, c.Role), issuer.PrincipalID
	}
	if id, session, ok := strings.Cut(u.PrincipalID, ":"); ok && strings.HasPrefix(id, "AROA") {
		c.RoleID, c.SessionName = orDefault(c.RoleID, id), orDefault(c.SessionName, session)
	}
	c.Role, c.RoleID, c.SessionName = truncate.Bytes(c.Role, maxIdentifierBytes),
		truncate.Bytes(c.RoleID, maxIdentifierBytes), truncate.Bytes(c.SessionName, maxIdentifierBytes)
	r.fillWorkload(&c)
	r.fillResources(&c)
	e := sensors.Event{ID: "cloudtrail/" + r.EventID, Kind: sensors.KindCloudAPICall, Time: r.EventTime.UTC(), Cloud: c}
	if principal != "" {
		e.Actor = "aws:" + principal
	}
	return e, nil
}

// failureReason returns why a call failed, or "" if it succeeded. A failed login has no errorCode; the outcome is in
// the response, the error message or the data of IAM Identity Center.
func (r *cloudTrailRecord) failureReason() string {
	if r.ErrorCode != "" {
		return r.ErrorCode
	}
	a := r.Response
	answers := []scalar{
		a.ConsoleLogin, a.CheckMfa, a.SwitchRole, a.ExitRole, a.RenewRole, a.PasswordRecoveryRequested,
		a.PasswordRecoveryCompleted,
		a.UserAuthentication, a.CredentialVerification, a.CredentialChallenge, a.GetSigninToken, r.Additional.LoginResult,
		r.ServiceDetails[r.EventName], r.ServiceDetails["result"],
	}
	failed := slices.ContainsFunc(answers, func(s scalar) bool {
		return strings.EqualFold(string(s), "Failure") || strings.EqualFold(string(s), "Failed")
	})
	if r.ErrorMessage != "" {
		return r.ErrorMessage
	}
	if failed {
		return "Failed authentication"
	}
	return ""
}

// podIdentityService is the AWS service that assumes roles for pods. eksIssuerARNPart is part of the ARN of every
// identity provider whose tokens come from an EKS cluster.
const (
	podIdentityService = "pods.eks.amazonaws.com"
	eksIssuerARNPart   = ":oidc-provider/oidc.eks."
)

// fillWorkload fills in the workload for which a session is created. A principal that may assume a role can choose the
// session's tags and name. Tags are therefore trusted only if EKS Pod Identity set them, which is an AWS service and
// not a principal of the account. A service account name is trusted only if an EKS identity provider issued it. A
// failed call proves nothing.
func (r *cloudTrailRecord) fillWorkload(c *sensors.Cloud) {
	u := r.UserIdentity
	if r.EventSource != "sts.amazonaws.com" || r.failureReason() != "" {
		return
	}
	if r.EventName == "AssumeRoleWithWebIdentity" && u.Type == "WebIdentityUser" &&
		strings.Contains(u.Provider, eksIssuerARNPart) {
		account := serviceAccountOf(u.UserName)
		c.Namespace, c.ServiceAccount = account.Namespace, account.Name
	}
	if r.EventName != "AssumeRole" || u.Type != "AWSService" || u.InvokedBy != podIdentityService {
		return
	}
	var tags []struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	if json.Unmarshal(r.Request.Tags, &tags) != nil {
		return
	}
	for _, tag := range tags[:min(len(tags), maxLabels)] {
		value := truncate.Bytes(tag.Value, maxIdentifierBytes)
		switch tag.Key {
		case "eks-cluster-name":
			c.Cluster = value
		case "kubernetes-namespace":
			c.Namespace = value
		case "kubernetes-service-account":
			c.ServiceAccount = value
		case "kubernetes-pod-name":
			c.Pod = value
		case "kubernetes-pod-uid":
			c.PodUID = value
		}
	}
}

// fillResources fills in the ARNs, names and key IDs that the call is about.
func (r *cloudTrailRecord) fillResources(c *sensors.Cloud) {
	var all []string
	for _, resource := range r.Resources {
		all = append(all, resource.ARN)
	}
	q := r.Request
	if q.BucketName != "" {
		all = append(all, strings.TrimSuffix("arn:aws:s3:::"+string(q.BucketName)+"/"+string(q.Key), "/"))
	}
	for _, name := range []scalar{
		q.PolicyARN, q.RoleARN, q.SecretID, q.FunctionName, q.InstanceID, q.KeyID, q.TableName,
		q.TrailName, q.Name, q.AccessKeyID,
	} {
		all = append(all, string(name))
	}
	for _, name := range slices.Concat(q.Names, q.SecretIDList) { // GetParameters, BatchGetSecretValue
		all = append(all, string(name))
	}
	// The ID of a new key identifies its later use. Its secret is never read.
	all = append(all, r.Response.Credentials.AccessKeyID, r.Response.AccessKey.AccessKeyID)
	c.Resources = sortUnique(all)
	for _, name := range []scalar{q.UserName, q.RoleName, q.GroupName, q.RoleARN, q.PolicyARN, q.PolicyName} {
		c.TargetPrincipal = orDefault(c.TargetPrincipal, truncate.Bytes(string(name), maxMessageBytes))
	}
}
