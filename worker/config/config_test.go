package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/config"
)

func TestParseReportsLineOfError(t *testing.T) {
	_, problems := config.Parse("stanch.yaml", []byte(`phase: 4
idle_timeout: soon
scopes:
  - name: shop
    namspaces: [shop]
    approvers: { groups: [nobody] }
people:
  - { name: alice, uid: 1, groups: [oncall] }
`))
	var got []string
	for _, p := range problems {
		got = append(got, p.String())
	}
	require.Contains(t, got, "stanch.yaml:5:1: error: unknown key `namspaces` [unknown-key]")
	require.Contains(t, got, "stanch.yaml:2:1: error: invalid duration `soon`; use a duration such as 90s, 15m or 1d "+
		"[yaml]")
}

func TestParseRejectsUndefinedNames(t *testing.T) {
	_, problems := config.Parse(
		"c",
		[]byte(
			"phase: 7\nscopes: [{name: shop, approvers: {groups: [oncal], users: [bob]}}]\npeople: [{name: alice, groups: [oncall]}]\n",
		),
	)
	var got []string
	for _, p := range problems {
		got = append(got, p.Message+" / "+p.Hint)
	}
	require.Equal(t, []string{
		"the cluster: invalid phase 7 / 1 observes, 2 contains, 3 disrupts with approval",
		"scope shop: the group `oncal` has no members / did you mean `oncall`?",
		"scope shop: unknown person `bob` / use one of: alice",
	}, got)
}

func TestDefaultConfigOnlyObserves(t *testing.T) {
	c := config.Default()
	require.Equal(t, 1, c.ScopeForNamespace("anything").Phase)
	require.Empty(t, c.ScopeForNamespace("anything").Approvers.Groups)
}

func TestScopePhaseIsLimitedByCluster(t *testing.T) {
	c, problems := config.Parse("c", []byte("phase: 2\nscopes: [{name: a, namespaces: [shop-*], phase: 3}]\n"))
	require.Empty(t, problems)
	require.Equal(t, 2, c.ScopeForNamespace("shop-eu").Phase)
	require.Equal(t, "default", c.ScopeForNamespace("bank").Name)
}

func TestParseRejectsDuplicateUserID(t *testing.T) {
	_, problems := config.Parse("c", []byte("people: [{name: a, uid: 5}, {name: b, uid: 5}, {name: c, uid: 6}]\n"))
	require.ErrorContains(t, problems.Err(), "two people have the uid 5")
	five, six := uint32(5), uint32(6)
	c := &config.Config{People: []config.Person{{Name: "a", UID: &five}, {Name: "b", UID: &five}, {Name: "c", UID: &six}}}
	_, ok := c.PersonByUID(5)
	require.False(t, ok)
	p, ok := c.PersonByUID(6)
	require.True(t, ok)
	require.Equal(t, "c", p.Name)
}

func TestParseRejectsInvalidApprovers(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"homoglyph":                 {"people: [{name: alice}, {name: \u0430lice}]", "can be mistaken"},
		"invisible character":       {"people: [{name: \"ali\\u200bce\"}]", "can be mistaken"},
		"same name in another case": {"people: [{name: alice}, {name: Alice}]", "two people have the name"},
		"duplicate Slack member": {
			"people: [{name: a, slack: U0AAAA}, {name: b, slack: U0AAAA}]",
			"two people have the Slack member",
		},
		"name instead of member id": {"people: [{name: a, slack: '@alice'}]", "invalid Slack member id"},
		"reserved group":            {"people: [{name: a, groups: [drill]}]", "reserved for drills"},
		"Slack group without Slack": {"groups: [{name: sre, slack: S0AAAA}]", "`slack:` is missing"},
		"channel name instead of id": {
			"slack: {channel: '#incidents', bot_token_file: t, app_token_file: a}",
			"invalid channel id",
		},
		"no way to receive clicks": {"slack: {channel: C0AAAA, bot_token_file: t}", "clicks cannot be received"},
		"escalation after timeout": {"people: [{name: a, groups: [x]}]\nscopes: [{name: s, approvers: {groups: [x], " +
			"timeout: 5m, escalate: {after: 5m, groups: [x]}}}]", "starts after the timeout"},
		"unknown group": {"people: [{name: a, groups: [x]}]\nscopes: [{name: s, approvers: {groups: [x], " +
			"escalate: {after: 1m, groups: [y]}}}]", "the group `y` has no members"},
		"unknown key": {"slack: {chanel: C0AAAA}", "chanel"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := config.Parse("c", []byte(c.text))
			require.ErrorContains(t, problems.Err(), c.want)
		})
	}
}

// A person who was removed from the file may not vote anymore at once, and while the file is invalid nobody may.
func TestRosterFollowsConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stanch.yaml")
	write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
	write("people: [{name: alice, uid: 1}, {name: bob, uid: 2}]")
	start, problems, err := config.Load(file)
	require.NoError(t, err)
	require.Empty(t, problems)
	roster := config.NewRoster(start, file)
	now, err := roster.Current()
	require.NoError(t, err)
	require.Len(t, now.People, 2)
	write("people: [{name: alice, uid: 1}]")
	now, err = roster.Current()
	require.NoError(t, err)
	require.Len(t, now.People, 1)
	require.Empty(t, roster.RestartRequiredKeys())
	write("people: [{name: alice, uid: 1}]\nphase: 2\nscopes: [{name: web, namespaces: [web]}]")
	now, err = roster.Current()
	require.NoError(t, err)
	require.Equal(t, 1, now.Phase, "other keys need a restart")
	require.Equal(t, []string{"phase", "scopes"}, roster.RestartRequiredKeys(),
		"changed keys that need a restart are listed")
	write("people: [{name: alice, uid: 1}, ")
	_, err = roster.Current()
	require.ErrorContains(t, err, "read the approvers")
	require.NoError(t, os.Remove(file))
	_, err = roster.Current()
	require.Error(t, err)
}

func TestParseRejectsInvalidAWSConfig(t *testing.T) {
	c, problems := config.Parse(
		"c",
		[]byte(
			"aws: { region: eu-central-1, cluster: shop, endpoint: \"http://127.0.0.1:5000\" }\nprotected: { roles: [\"billing-*\"] }\n",
		),
	)
	require.Empty(t, problems)
	require.Equal(t, "shop", c.AWS.Cluster)
	require.Nil(t, config.Default().AWS, "AWS is disabled by default")

	_, problems = config.Parse("c", []byte("aws:\n  regio: eu\n"))
	require.Equal(t, "c:2:1: error: unknown key `regio` [unknown-key]", problems[len(problems)-1].String())
	require.Contains(t, problems[len(problems)-1].Hint, "did you mean `region`?")

	_, problems = config.Parse(
		"c",
		[]byte(
			"aws: { region: Frankfurt, role_arn: stanch, cluster: \"arn:aws:eks:x\", endpoint: \"http://aws.example\" }\nprotected: { roles: [\"[\"] }\n",
		),
	)
	var got []string
	for _, p := range problems {
		got = append(got, p.Message)
	}
	require.Equal(t, []string{
		"protected: invalid pattern `[`", "aws: invalid region `Frankfurt`", "aws: invalid role ARN `stanch`",
		"aws: invalid EKS cluster name `arn:aws:eks:x`", "aws: credentials would be sent to aws.example in clear text",
	}, got)
	_, problems = config.Parse("c", []byte("aws: {}\n"))
	require.Contains(t, problems[0].Message, "the region is missing")
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("phase: 2\nscopes: [{name: a, namespaces: [x]}]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, problems := config.Parse("c", raw)
		if c == nil && !problems.HasErrors() {
			t.Fatal("got neither a config nor an error")
		}
	})
}
