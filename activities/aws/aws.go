// Package aws holds the actions on a cloud identity: what a pod may do in AWS, what its role did, and taking that away
// from one pod, one role, one user or one key.
//
// It refuses to touch a role by its name alone: a name is used again, a RoleId never. It refuses to touch what Stanch
// itself acts as, and to take anything back that somebody else changed since: then it says what differs. A deny that
// no simulation confirmed is "unverified".
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
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
)

// Options say which account, and how it is reached.
type Options struct {
	Region   string
	Endpoint string // "" means AWS's own
	Profile  string // of the shared configuration files; "" means the default chain
	RoleARN  string // to assume; "" works as who the credentials are
	Cluster  string // the EKS cluster's name; "" means that Pod Identity cannot be looked up
	// ProtectedRoles are ARNs or patterns of names that are never contained.
	ProtectedRoles []string
}

// The SDK tries again by itself, within what an activity may take.
const (
	maxAttempts = 5
	maxBackoff  = 3 * time.Second
)

// Account is one AWS account. A nil one is none: its actions refuse.
type Account struct {
	Options
	iam         *iam.Client
	sts         []*sts.Client // who Stanch is: what its credentials are, and what it assumes
	cloudTrail  *cloudtrail.Client
	eks         *eks.Client
	sqs         *sqs.Client
	credentials awssdk.CredentialsProvider

	mu             sync.Mutex
	cachedIdentity *callerIdentity
	lookupLimiter  callLimiter
}

// callerIdentity is who Stanch is.
type callerIdentity struct {
	accountID    string
	principalIDs []string // RoleId or UserId
}

// Open reads the configuration of the SDK. It asks AWS nothing.
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
		return nil, fmt.Errorf("read the configuration of AWS: %w; see `aws:` in stanch.yaml", err)
	}
	a := &Account{Options: o, sts: []*sts.Client{sts.NewFromConfig(cfg)}}
	if o.RoleARN != "" {
		provider := stscreds.NewAssumeRoleProvider(a.sts[0], o.RoleARN, func(p *stscreds.AssumeRoleOptions) { p.RoleSessionName = "stanch" })
		cfg.Credentials = awssdk.NewCredentialsCache(provider)
		a.sts = append(a.sts, sts.NewFromConfig(cfg))
	}
	a.sqs = sqs.NewFromConfig(cfg)
	a.iam, a.cloudTrail, a.eks, a.credentials = iam.NewFromConfig(cfg), cloudtrail.NewFromConfig(cfg), eks.NewFromConfig(cfg), cfg.Credentials
	return a, nil
}

// Actions are this package's actions. Without an account, or without a cluster where a pod is asked for, they refuse.
func Actions(account *Account, client kubernetes.Interface) []activities.Action {
	return []activities.Action{
		&identityAction{account, client}, &cloudTrailEvidence{account},
		&revokeSessionsAction{account}, &denyPodAction{account, client}, &denyAssumeAction{account}, &disableKeyAction{account}, &denyUserAction{account},
	}
}

// checkConfigured refuses where there is no account.
func (a *Account) checkConfigured() error {
	if a == nil {
		return activities.Refusef("no AWS account is configured: add `aws:` to stanch.yaml")
	}
	return nil
}

// resolveCallerIdentity asks who Stanch is, once.
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
			return nil, wrapError(err, "sts:GetCallerIdentity", "ask who Stanch is")
		}
		id, _, _ := strings.Cut(awssdk.ToString(out.UserId), ":")
		me.principalIDs = append(me.principalIDs, id)
		me.accountID = awssdk.ToString(out.Account)
	}
	a.cachedIdentity = me
	return me, nil
}

// CheckIdentity says which account it is, for the doctor.
func (a *Account) CheckIdentity(ctx context.Context) (string, error) {
	me, err := a.resolveCallerIdentity(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("account %s in %s", me.accountID, a.Region), nil
}

// refuseProtected refuses what must never be contained.
func (a *Account) refuseProtected(ctx context.Context, p principal) error {
	me, err := a.resolveCallerIdentity(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(me.principalIDs, p.ID) {
		return activities.Refusef("%s is what Stanch itself acts as", p)
	}
	for _, pattern := range a.ProtectedRoles {
		if MatchesRolePattern(pattern, p.Name, p.ARN) {
			return activities.Refusef("%s is protected (%s)", p, pattern)
		}
	}
	return nil
}

// MatchesRolePattern tells whether a pattern of `protected.roles` names a role: an ARN or a name, with * and ?.
func MatchesRolePattern(pattern, name, arn string) bool {
	if strings.HasPrefix(pattern, "arn:") {
		ok, err := path.Match(pattern, arn)
		return err == nil && ok
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// accountFromARN is the account in an ARN.
func accountFromARN(arn string) string {
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
		return parts[4]
	}
	return ""
}

// nameFromARN is the last part of an ARN's resource: a role's name without its path.
func nameFromARN(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }

// callLimiter lets one call begin each so long: CloudTrail allows two a second.
type callLimiter struct {
	mu         sync.Mutex
	nextCallAt time.Time
}

func (p *callLimiter) wait(ctx context.Context, every time.Duration) error {
	p.mu.Lock()
	now := time.Now()
	at := p.nextCallAt
	if at.Before(now) {
		at = now
	}
	p.nextCallAt = at.Add(every)
	p.mu.Unlock()
	return sleep(ctx, at.Sub(now))
}

// delayNext puts the next call off: the SDK may have tried several times.
func (p *callLimiter) delayNext(every time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at := time.Now().Add(every); at.After(p.nextCallAt) {
		p.nextCallAt = at
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller says what was waited for
	case <-t.C:
		return nil
	}
}

// truncate bounds what a service or an attacker wrote.
func truncate(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

func valueOrNone(s string) string { return cmp.Or(s, "none") }
