// Package aws contains the actions on AWS identities: what a pod may do in AWS, what its role did, and denying that to
// one pod, one role, one user or one key.
//
// It refuses to change a role by its name alone, because names are reused and RoleIds never. It refuses to contain the
// identities that Stanch itself uses, and to undo what someone else changed since; it then returns the differences. A
// deny that no simulation confirms is "unverified".
package aws

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"golang.org/x/time/rate"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/sensors/truncate"
)

// Options selects an account and how to reach it. The zero value uses the SDK's default credentials.
type Options struct {
	Region   string
	Endpoint string // "" means AWS's own endpoints
	Profile  string // profile of the shared configuration files; "" means the default chain
	RoleARN  string // role to assume; "" uses the credentials directly
	Cluster  string // EKS cluster name; "" disables look-ups of Pod Identity
	// ProtectedRoles are ARNs or name patterns of roles that are never contained.
	ProtectedRoles []string
}

// Limits of the SDK's own retries, within an activity's timeout.
const (
	maxAttempts = 5
	maxBackoff  = 3 * time.Second
)

// Account is one AWS account. A nil *Account means that none is configured: its actions refuse. It is safe for
// concurrent use.
type Account struct {
	Options
	iam         *iam.Client
	sts         []*sts.Client // the identities that Stanch uses: its credentials and the role that it assumes
	cloudTrail  *cloudtrail.Client
	eks         *eks.Client
	sqs         *sqs.Client
	credentials awssdk.CredentialsProvider

	mu             sync.Mutex
	cachedIdentity *callerIdentity
	lookupLimiter  *rate.Limiter

	readingMu   sync.Mutex
	lastReading accountReading // for searches of orphans
}

// callerIdentity is the identity that Stanch uses.
type callerIdentity struct {
	accountID    string
	principalIDs []string // RoleIds or UserIds
}

// Open loads the SDK's configuration. It makes no calls to AWS.
func Open(ctx context.Context, o Options) (*Account, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRegion(o.Region),
		config.WithRetryer(func() awssdk.Retryer {
			return retry.NewStandard(func(s *retry.StandardOptions) { s.MaxAttempts, s.MaxBackoff = maxAttempts, maxBackoff })
		}),
	}
	if o.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(o.Profile))
	}
	if o.Endpoint != "" {
		options = append(options, config.WithBaseEndpoint(o.Endpoint))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("read the AWS configuration: %w; see `aws:` in stanch.yaml", err)
	}
	a := &Account{
		Options: o, sts: []*sts.Client{sts.NewFromConfig(cfg)},
		lookupLimiter: rate.NewLimiter(rate.Every(lookupInterval), 1),
	}
	if o.RoleARN != "" {
		provider := stscreds.NewAssumeRoleProvider(a.sts[0], o.RoleARN,
			func(p *stscreds.AssumeRoleOptions) { p.RoleSessionName = "stanch" })
		cfg.Credentials = awssdk.NewCredentialsCache(provider)
		a.sts = append(a.sts, sts.NewFromConfig(cfg))
	}
	a.sqs = sqs.NewFromConfig(cfg)
	a.iam, a.cloudTrail, a.eks, a.credentials = iam.NewFromConfig(cfg), cloudtrail.NewFromConfig(cfg),
		eks.NewFromConfig(cfg), cfg.Credentials
	return a, nil
}

// Actions returns the actions of this package. They refuse without an account, and those that need a pod refuse without
// a cluster.
func Actions(account *Account, client kubernetes.Interface) []activities.Action {
	return []activities.Action{
		&identityAction{account, client}, &cloudTrailEvidence{account},
		&revokeSessionsAction{account}, &denyPodAction{account, client}, &denyAssumeAction{account},
		&disableKeyAction{account}, &denyUserAction{account},
	}
}

// checkConfigured returns a refusal if there is no account.
func (a *Account) checkConfigured() error {
	if a == nil {
		return activities.Refusef("AWS is not configured; add `aws:` to stanch.yaml")
	}
	return nil
}

// resolveCallerIdentity returns the identity that Stanch uses. It asks AWS once.
func (a *Account) resolveCallerIdentity(ctx context.Context) (*callerIdentity, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cachedIdentity != nil {
		return a.cachedIdentity, nil
	}
	me := &callerIdentity{}
	for _, client := range a.sts {
		out, err := client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return nil, wrapError(err, "sts:GetCallerIdentity", "get Stanch's AWS identity")
		}
		id, _, _ := strings.Cut(awssdk.ToString(out.UserId), ":")
		me.principalIDs = append(me.principalIDs, id)
		me.accountID = awssdk.ToString(out.Account)
	}
	a.cachedIdentity = me
	return me, nil
}

// CheckIdentity returns the account and identity in use, for `stanch doctor`.
func (a *Account) CheckIdentity(ctx context.Context) (string, error) {
	me, err := a.resolveCallerIdentity(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("account %s in %s", me.accountID, a.Region), nil
}

// refuseProtected returns a refusal for identities that must never be contained.
func (a *Account) refuseProtected(ctx context.Context, p principal) error {
	me, err := a.resolveCallerIdentity(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(me.principalIDs, p.ID) {
		return activities.Refusef("%s is Stanch's own identity", p)
	}
	for _, pattern := range a.ProtectedRoles {
		if MatchesRolePattern(pattern, p.Name, p.ARN) {
			return activities.Refusef("%s is protected (%s)", p, pattern)
		}
	}
	return nil
}

// MatchesRolePattern reports whether a pattern of `protected.roles` matches a role: an ARN or a name, with * and ?.
func MatchesRolePattern(pattern, name, arn string) bool {
	if strings.HasPrefix(pattern, "arn:") {
		ok, err := path.Match(pattern, arn)
		return err == nil && ok
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// accountFromARN returns the account in an ARN.
func accountFromARN(arn string) string {
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
		return parts[4]
	}
	return ""
}

// nameFromARN returns the last part of an ARN's resource: a role's name without its path.
func nameFromARN(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }

// lookUp calls CloudTrail, which allows two lookups per second.
func (a *Account) lookUp(ctx context.Context, in *cloudtrail.LookupEventsInput) (*cloudtrail.LookupEventsOutput,
	error,
) {
	if err := a.lookupLimiter.Wait(ctx); err != nil {
		return nil, fmt.Errorf("wait for CloudTrail's rate limit: %w", err)
	}
	out, err := a.cloudTrail.LookupEvents(ctx, in)
	// A call that took longer than the interval may have been several, because the SDK retries: it counts as made now.
	a.lookupLimiter.Allow()
	if err != nil {
		return nil, wrapError(err, "cloudtrail:LookupEvents", "look up events in CloudTrail")
	}
	return out, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller adds context
	case <-t.C:
		return nil
	}
}

// plainText returns text from a service or an attacker on one line, with at most n characters.
func plainText(s string, n int) string {
	return truncate.Text(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s), n)
}

func valueOrNone(s string) string { return cmp.Or(s, "none") }
