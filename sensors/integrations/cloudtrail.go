package integrations

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"stanch/sensors"
)

// cloudTrailRecord is one record of DecodeCloudTrail, as far as Stanch looks into it: of what was sent and answered it reads names
// and ids, and has no field for a password, a policy's text or a session's secret.
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
	// ServiceDetails say of events of IAM Identity Center, by the event's name, whether they worked.
	ServiceDetails cloudTrailServiceDetails `json:"serviceEventDetails"`
	// S3 is there in what is no record of DecodeCloudTrail but a notification of S3.
	S3 *json.RawMessage `json:"s3"`
}

// cloudTrailRequest are the names in a request.
type cloudTrailRequest struct {
	BucketName, Key, RoleName, UserName, GroupName, PolicyName scalar
	PolicyARN, RoleARN, SecretID, FunctionName, InstanceID     scalar
	KeyID, TableName, TrailName, Name, AccessKeyID             scalar
	Names, SecretIDList                                        []scalar
	Tags                                                       json.RawMessage
}

type cloudTrailResponse struct {
	// How logins say that they failed: they have no errorCode. See the sign-in events in the DecodeCloudTrail user guide.
	ConsoleLogin, CheckMfa, SwitchRole, ExitRole, RenewRole, PasswordRecoveryRequested, PasswordRecoveryCompleted scalar
	UserAuthentication, CredentialVerification, CredentialChallenge, GetSigninToken                               scalar

	Credentials struct {
		AccessKeyID string `json:"accessKeyId"`
	} `json:"credentials"`
	AccessKey struct {
		AccessKeyID string `json:"accessKeyId"`
	} `json:"accessKey"`
}

// cloudTrailAdditional says of a login whether there was a second factor.
type cloudTrailAdditional struct{ MFAUsed, LoginResult scalar }

type cloudTrailServiceDetails map[string]scalar

// UnmarshalJSON takes details of another shape for none.
func (r *cloudTrailServiceDetails) UnmarshalJSON(raw []byte) error {
	type plain map[string]scalar
	var p plain
	if json.Unmarshal(raw, &p) == nil {
		*r = cloudTrailServiceDetails(p)
	}
	return nil
}

// UnmarshalJSON takes additions of another shape for none.
func (r *cloudTrailAdditional) UnmarshalJSON(raw []byte) error {
	type plain cloudTrailAdditional
	_ = json.Unmarshal(raw, (*plain)(r))
	return nil
}

// UnmarshalJSON takes an answer of another shape for none.
func (r *cloudTrailResponse) UnmarshalJSON(raw []byte) error {
	type plain cloudTrailResponse
	_ = json.Unmarshal(raw, (*plain)(r))
	return nil
}

// UnmarshalJSON takes parameters of another shape for none.
func (r *cloudTrailRequest) UnmarshalJSON(raw []byte) error {
	type plain cloudTrailRequest
	_ = json.Unmarshal(raw, (*plain)(r))
	return nil
}

// The bounds of what DecodeCloudTrail sends: a file of S3 is the largest.
const (
	MaxCloudTrailBytes  = 32 << 20
	maxCloudTrailEvents = 20_000
	maxEnvelopeDepth    = 4
)

// DecodeCloudTrail decodes a record of DecodeCloudTrail, a file of them ({"Records":[…]}), an event of EventBridge ({"detail":{…}}), and
// any of these inside of a notification of SNS, as it lies in a queue of SQS. What can be read is given together with an
// error about what cannot.
func DecodeCloudTrail(raw []byte) ([]sensors.Event, error) { return decodeCloudTrailEnvelope(raw, 0) }

func decodeCloudTrailEnvelope(raw []byte, depth int) ([]sensors.Event, error) {
	if depth > maxEnvelopeDepth {
		return nil, errors.New("not CloudTrail: it is wrapped too often")
	}
	if len(raw) > MaxCloudTrailBytes {
		return nil, fmt.Errorf("not CloudTrail: it has %d bytes, at most %d are read", len(raw), MaxCloudTrailBytes)
	}
	envelope, err := splitJSONObject(raw)
	if err != nil {
		return nil, fmt.Errorf("not CloudTrail: %w", err)
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
		return nil, errors.New("it tells of a file of CloudTrail in S3, and is not that file")
	case envelope["Records"] != nil:
		if records, err = splitJSONArray(envelope["Records"]); err != nil {
			return nil, fmt.Errorf("not a file of CloudTrail: %w", err)
		}
		if len(records) > maxCloudTrailEvents {
			return nil, fmt.Errorf("%d records at once, at most %d are read", len(records), maxCloudTrailEvents)
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
		return sensors.Event{}, errors.New("it tells of a file in S3, and is not that file")
	case r.EventID == "" || r.EventName == "" || r.EventSource == "":
		return sensors.Event{}, errors.New("it is no record of CloudTrail: it has no eventID, eventName or eventSource")
	case !isPlausibleTime(r.EventTime.Time):
		return sensors.Event{}, errors.New("it has no time, or one that no clock says")
	case len(r.EventID) > 128 || len(r.EventName) > maxIdentifierBytes || len(r.EventSource) > maxIdentifierBytes:
		return sensors.Event{}, errors.New("a name in it is too long")
	}
	c := sensors.Cloud{
		Provider: "aws", Service: r.EventSource, EventName: r.EventName, Region: truncateForDisplay(r.Region, 64), Account: truncateForDisplay(orDefault(u.AccountID, r.RecipientID), 64),
		Principal: principal, PrincipalID: truncateForDisplay(u.PrincipalID, maxMessageBytes), PrincipalType: truncateForDisplay(u.Type, 64), AccessKeyID: truncateForDisplay(u.AccessKeyID, 64),
		SourceIP: truncateForDisplay(r.SourceIP, maxIdentifierBytes), UserAgent: truncateForDisplay(r.UserAgent, maxMessageBytes), ErrorCode: truncateForDisplay(r.failureReason(), maxIdentifierBytes), ReadOnly: r.ReadOnly.bool(),
		MFA: u.SessionContext.Attributes.MFA.bool() || r.Additional.MFAUsed == "Yes",
	}
	c.Role, c.SessionName = roleOf(u.ARN)
	if issuer := u.SessionContext.SessionIssuer; issuer.Type == "Role" {
		c.Role, c.RoleID = orDefault(issuer.UserName, c.Role), issuer.PrincipalID
	}
	if id, session, ok := strings.Cut(u.PrincipalID, ":"); ok && strings.HasPrefix(id, "AROA") {
		c.RoleID, c.SessionName = orDefault(c.RoleID, id), orDefault(c.SessionName, session)
	}
	c.Role, c.RoleID, c.SessionName = truncateForDisplay(c.Role, maxIdentifierBytes), truncateForDisplay(c.RoleID, maxIdentifierBytes), truncateForDisplay(c.SessionName, maxIdentifierBytes)
	r.fillWorkload(&c)
	r.fillResources(&c)
	e := sensors.Event{ID: "cloudtrail/" + r.EventID, Kind: sensors.KindCloudAPICall, Time: r.EventTime.UTC(), Cloud: c}
	if principal != "" {
		e.Actor = "aws:" + principal
	}
	return e, nil
}

// failureReason says why a call failed; "" is one that worked. A login that failed has no errorCode: its answer or its message say
// it, or the additions of IAM Identity Center.
func (r *cloudTrailRecord) failureReason() string {
	if r.ErrorCode != "" {
		return r.ErrorCode
	}
	a := r.Response
	answers := []scalar{
		a.ConsoleLogin, a.CheckMfa, a.SwitchRole, a.ExitRole, a.RenewRole, a.PasswordRecoveryRequested, a.PasswordRecoveryCompleted,
		a.UserAuthentication, a.CredentialVerification, a.CredentialChallenge, a.GetSigninToken, r.Additional.LoginResult, r.ServiceDetails[r.EventName], r.ServiceDetails["result"],
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

// podIdentityService is the service that takes roles for pods, and eksIssuerARNPart is in the ARN of every provider whose tokens are those
// of an EKS cluster.
const (
	podIdentityService = "pods.eks.amazonaws.com"
	eksIssuerARNPart   = ":oidc-provider/oidc.eks."
)

// fillWorkload names the pod for which a session is made. Whoever may take a role may give the session any tags and any name:
// tags are believed if EKS Pod Identity gave them, which is a service of AWS and no principal of the account, and a service
// account's name if a provider of EKS vouched for it. What was refused proves nothing.
func (r *cloudTrailRecord) fillWorkload(c *sensors.Cloud) {
	u := r.UserIdentity
	if r.EventSource != "sts.amazonaws.com" || r.failureReason() != "" {
		return
	}
	if r.EventName == "AssumeRoleWithWebIdentity" && u.Type == "WebIdentityUser" && strings.Contains(u.Provider, eksIssuerARNPart) {
		account := serviceAccountOf(u.UserName)
		c.Namespace, c.ServiceAccount = account.Namespace, account.Name
	}
	if r.EventName != "AssumeRole" || u.Type != "AWSService" || u.InvokedBy != podIdentityService {
		return
	}
	var tags []struct{ Key, Value string }
	if json.Unmarshal(r.Request.Tags, &tags) != nil {
		return
	}
	for _, tag := range tags[:min(len(tags), maxLabels)] {
		value := truncateForDisplay(tag.Value, maxIdentifierBytes)
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

// fillResources are what the call was about: ARNs, names and the ids of keys.
func (r *cloudTrailRecord) fillResources(c *sensors.Cloud) {
	var all []string
	for _, resource := range r.Resources {
		all = append(all, resource.ARN)
	}
	q := r.Request
	if q.BucketName != "" {
		all = append(all, strings.TrimSuffix("arn:aws:s3:::"+string(q.BucketName)+"/"+string(q.Key), "/"))
	}
	for _, name := range []scalar{q.PolicyARN, q.RoleARN, q.SecretID, q.FunctionName, q.InstanceID, q.KeyID, q.TableName, q.TrailName, q.Name, q.AccessKeyID} {
		all = append(all, string(name))
	}
	for _, name := range slices.Concat(q.Names, q.SecretIDList) { // GetParameters, BatchGetSecretValue
		all = append(all, string(name))
	}
	// The id of a key that was made is how its use is recognised later; its secret is not read.
	all = append(all, r.Response.Credentials.AccessKeyID, r.Response.AccessKey.AccessKeyID)
	c.Resources = sortUnique(all)
	for _, name := range []scalar{q.UserName, q.RoleName, q.GroupName, q.RoleARN, q.PolicyARN, q.PolicyName} {
		c.TargetPrincipal = orDefault(c.TargetPrincipal, truncateForDisplay(string(name), maxMessageBytes))
	}
}
