package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/diagnostic"
	"stanch/worker/config"
)

// Each case marks with § where its error belongs; the file is parsed without the mark.
func TestErrorsAreAtTheirNodes(t *testing.T) {
	for text, want := range map[string]string{
		"cluster: a\nphase: §4\n":                                  "the cluster: invalid phase 4",
		"idle_timeout: §soon\n":                                    "invalid duration `soon`",
		"evidence:\n  max_total: §many\n":                          "invalid size `many`",
		"phase: §[1]\n":                                            "cannot unmarshal !!seq into int",
		"scopes:\n  - name: shop\n    §namspaces: [shop]\n":        "unknown key `namspaces`",
		"scopes:\n  - name: a\n  - name: §a\n":                     "the scope name `a` is empty or used twice",
		"scopes:\n  - §namespaces: [a]\n":                          "the scope name `` is empty or used twice",
		"scopes: [{name: a, phase: §9}]":                           "scope a: invalid phase 9",
		"scopes: [{name: a, confidence: §2}]":                      "`confidence` must be from 0 to 1",
		"scopes: [{name: a, namespaces: [b, §'[']}]":               "invalid pattern `[`",
		"scopes: [{name: a, approvers: {groups: [§x]}}]":           "the group `x` has no members",
		"scopes: [{name: a, approvers: {users: [§x]}}]":            "unknown person `x`",
		"scopes: [{name: a, approvers: {escalate: §{after: 5m}}}]": "invalid `escalate`",
		"people: [{name: a, groups: [g]}]\nscopes: [{name: a, approvers: {escalate: {after: 1m, groups: [g, §x]}}}]": "escalate: the group `x` has no members",
		"people:\n  - { name: a, uid: 5 }\n  - { name: b, uid: §5 }\n":                                               "two people have the uid 5",
		"people: [{name: a, kubernetes: k}, {name: b, kubernetes: §k}]":                                              "two people have the Kubernetes user `k`",
		"people: [{name: a, slack: §alice}]":                                                                         "invalid Slack member id `alice`",
		"people: [{name: a, groups: §[drill]}]":                                                                      "reserved for drills",
		"people: [§{uid: 1}]":                                                                                        "a person's name is missing",
		"groups: [{name: g, slack: §x}]":                                                                             "invalid Slack user group id `x`",
		"slack: {channel: §general, bot_token_file: t, app_token_file: a}":                                           "invalid channel id `general`",
		"slack: §{channel: C0AAAA, app_token_file: a}":                                                               "`slack.bot_token_file` is missing",
		"protected: {roles: [a, §'[']}":                                                                              "protected: invalid pattern `[`",
		"aws: {region: §Frankfurt}":                                                                                  "invalid region `Frankfurt`",
		"aws: {region: eu-central-1, endpoint: §'http://aws.example'}":                                               "in clear text",
		"aws: {region: eu-central-1, cloudtrail: {queue: §'ftp://x'}}":                                               "invalid queue URL `ftp://x`",
		"networks: [10.0.0.0/8, §home]":                                                                              "invalid network or address `home`",
		"library: {except: [b], only: §[a]}":                                                                         "`only` cannot be combined",
		"nodes: {refused: [a, §'B C']}":                                                                              "invalid node name",
		"nodes: {burst: §-1}":                                                                                        "invalid `burst` -1",
		"sources: [{name: a, token_file: t, kind: §snort}]":                                                          "unknown kind `snort`",
		"sources: [§{name: a}]":                                                                                      "`token_file` is missing",
		"exports: [{name: a, format: §cef, file: f}]":                                                                "unknown format `cef`",
		"exports: [{name: a, format: ocsf, url: §'http://x'}]":                                                       "http is allowed only to this machine",
		"webhooks: [{name: w, secret_file: s, url: §'x'}]":                                                           "`url` is not an https URL",
		"email: {smtp: 'h:25', from: a@b.c, to: [a@b.c, §b]}":                                                        "invalid address `b`",
		"ticket: {kind: §trac}":                                                                                      "unknown tracker `trac`",
		"ticket: {kind: github, project: §x, token_file: t}":                                                         "invalid project `x`",
	} {
		line := 1 + strings.Count(text[:strings.Index(text, "§")], "\n")
		column := 1 + len(text[strings.LastIndex(text[:strings.Index(text, "§")], "\n")+1:strings.Index(text, "§")])
		_, problems := config.Parse("c", []byte(strings.Replace(text, "§", "", 1)))
		var got []string
		for _, p := range problems {
			if strings.Contains(p.Message, want) {
				got = append(got, fmt.Sprintf("%d:%d", p.Line, p.Column))
			}
		}
		require.Equal(t, []string{fmt.Sprintf("%d:%d", line, column)}, got, "%s\n%v", text, problems)
	}
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
	require.Len(t, problems, 2)
	unknown := problems[slices.IndexFunc(problems, func(p diagnostic.Diagnostic) bool { return p.Code == "unknown-key" })]
	require.Equal(t, "c:2:3: error: unknown key `regio` [unknown-key]", unknown.String())
	require.Contains(t, unknown.Hint, "did you mean `region`?")

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
		"aws: invalid region `Frankfurt`", "aws: invalid role ARN `stanch`",
		"aws: invalid EKS cluster name `arn:aws:eks:x`", "aws: credentials would be sent to aws.example in clear text",
		"protected: invalid pattern `[`",
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
