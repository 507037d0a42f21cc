package config

import (
	"regexp"
	"slices"
	"strings"
	"unicode"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/yamlnode"
)

// Person is someone who may vote, with the identities of each authentication method.
type Person struct {
	Name string  `yaml:"name" json:"name"`
	UID  *uint32 `yaml:"uid" json:"uid,omitempty" jsonschema:"description=the user id on this machine's local socket"`
	// SlackMemberID is the member id: names in Slack can be changed, ids cannot.
	SlackMemberID string `yaml:"slack" json:"slack,omitempty" jsonschema:"description=the member id in Slack (U…): in the profile under Copy member ID"`
	// KubernetesUser is the user name that TokenReview returns.
	KubernetesUser string   `yaml:"kubernetes" json:"kubernetes,omitempty" jsonschema:"description=the user name in Kubernetes; kubectl auth whoami shows it"`
	AWSPrincipal   string   `yaml:"aws" json:"aws,omitempty" jsonschema:"description=the ARN in AWS; a person whose ARN triggered a detection cannot approve its containment"`
	Groups         []string `yaml:"groups" json:"groups,omitempty"`
	// BreakGlass permits the person to approve alone in place of a quorum, with a reason and a separate record.
	BreakGlass bool `yaml:"break_glass" json:"break_glass,omitempty" jsonschema:"description=may approve alone for a complete quorum; it is recorded and shown to everybody"`
}

// MatchesActor reports whether a source's name of an actor is this person.
func (p Person) MatchesActor(actor string) bool {
	return actor == sensors.ActorPersonPrefix+p.Name || p.KubernetesUser != "" && actor == "kubernetes:"+
		p.KubernetesUser || p.AWSPrincipal != "" && actor == "aws:"+p.AWSPrincipal
}

// Group adds the members of a Slack user group to the people with this group. Its members must be configured people
// too.
type Group struct {
	Name           string `yaml:"name" json:"name"`
	SlackUserGroup string `yaml:"slack" json:"slack,omitempty" jsonschema:"description=the id of a user group in Slack (S…)"`
}

// Slack configures the chat. Answers need AppTokenFile or SigningSecretFile.
type Slack struct {
	Channel           string `yaml:"channel" json:"channel" jsonschema:"description=the id of the channel (C…)"`
	BotTokenFile      string `yaml:"bot_token_file" json:"bot_token_file"`
	AppTokenFile      string `yaml:"app_token_file" json:"app_token_file,omitempty" jsonschema:"description=for Socket Mode; Stanch connects to Slack and opens no port"`
	SigningSecretFile string `yaml:"signing_secret_file" json:"signing_secret_file,omitempty" jsonschema:"description=for requests of Slack to --listen /slack/interactions"`
	APIURL            string `yaml:"api_url" json:"api_url,omitempty" jsonschema:"description=another URL of Slack's API, such as https://slack-gov.com/api/"`
}

// Escalation adds approvers when nobody has decided for some time.
type Escalation struct {
	After  Duration `yaml:"after" json:"after"`
	Groups []string `yaml:"groups" json:"groups,omitempty"`
	Users  []string `yaml:"users" json:"users,omitempty"`
}

// GroupNames returns the valid group names: groups with members, from here or from Slack.
func (c *Config) GroupNames() []string {
	var names []string
	for _, p := range c.People {
		names = append(names, p.Groups...)
	}
	for _, g := range c.Groups {
		names = append(names, g.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// FindPerson returns the only person for whom is returns true. It returns false if there are several.
func (c *Config) FindPerson(is func(Person) bool) (Person, bool) {
	var found []Person
	for _, p := range c.People {
		if is(p) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return Person{}, false
	}
	return found[0], true
}

// PersonByUID returns the person with a user id.
func (c *Config) PersonByUID(uid uint32) (Person, bool) {
	return c.FindPerson(func(p Person) bool { return p.UID != nil && *p.UID == uid })
}

// PersonBySlack returns the person with a Slack member id.
func (c *Config) PersonBySlack(id string) (Person, bool) {
	return c.FindPerson(func(p Person) bool { return id != "" && p.SlackMemberID == id })
}

// PersonByKubernetes returns the person with a Kubernetes user name.
func (c *Config) PersonByKubernetes(user string) (Person, bool) {
	return c.FindPerson(func(p Person) bool { return user != "" && p.KubernetesUser == user })
}

var (
	slackMemberPattern  = regexp.MustCompile(`^[UW][A-Z0-9]{4,}$`)
	slackGroupPattern   = regexp.MustCompile(`^S[A-Z0-9]{4,}$`)
	slackChannelPattern = regexp.MustCompile(`^[CG][A-Z0-9]{4,}$`)
)

// usesSingleScript reports whether all letters of a name are of one script; several may imitate another name.
func usesSingleScript(name string) (ok bool) {
	scripts := []*unicode.RangeTable{unicode.Latin, unicode.Cyrillic, unicode.Greek, unicode.Armenian, unicode.Cherokee}
	var seen *unicode.RangeTable
	for _, r := range name {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return false
		}
		for _, s := range scripts {
			if !unicode.Is(s, r) {
				continue
			}
			if seen != nil && seen != s {
				return false
			}
			seen = s
		}
	}
	return true
}

// knownNames are the names of groups and people that other settings may use.
type knownNames struct{ groups, people []string }

// checkPeople checks the people and groups, and returns their names.
func (p *configParser) checkPeople(c *Config) knownNames {
	var known knownNames
	for i, person := range c.People {
		p.checkPerson(i, person, c.People[:i])
		known.people, known.groups = append(known.people, person.Name), append(known.groups, person.Groups...)
	}
	for i, g := range c.Groups {
		at := func(key string) yamlnode.Position { return p.at("groups", i, key) }
		switch {
		case g.Name == "" || g.Name == DrillScope || slices.ContainsFunc(c.Groups[:i],
			func(o Group) bool { return o.Name == g.Name }):
			p.Errorf(at("name"), "name", "`drill` is reserved for drills", "the group name `%s` is empty or used twice", g.Name)
		case g.SlackUserGroup != "" && !slackGroupPattern.MatchString(g.SlackUserGroup):
			p.Errorf(at("slack"), "slack", "it begins with S", "invalid Slack user group id `%s` of the group %s",
				g.SlackUserGroup, g.Name)
		case g.SlackUserGroup != "" && c.Slack == nil:
			p.Errorf(at("slack"), "slack", "add `slack:` with a bot token",
				"the group %s takes its members from Slack, but `slack:` is missing", g.Name)
		}
		known.groups = append(known.groups, g.Name)
	}
	return known
}

// checkPerson checks a person; before are the people above in the file.
func (p *configParser) checkPerson(i int, person Person, before []Person) {
	at := func(key string) yamlnode.Position { return p.at("people", i, key) }
	same := func(key, what, a string, of func(Person) string) {
		if a != "" && slices.ContainsFunc(before, func(o Person) bool { return of(o) == a }) {
			p.Errorf(at(key), "duplicate", "give each person their own", "two people have the %s `%s`", what, a)
		}
	}
	switch {
	case person.Name == "":
		p.Errorf(at("name"), "required", "", "a person's name is missing")
	case !usesSingleScript(person.Name) || strings.TrimSpace(person.Name) != person.Name:
		p.Errorf(at("name"), "name", "use a single script, without invisible characters",
			"the name `%s` can be mistaken for another", person.Name)
	case slices.ContainsFunc(before, func(o Person) bool { return strings.EqualFold(o.Name, person.Name) }):
		p.Errorf(at("name"), "duplicate", "", "two people have the name `%s`", person.Name)
	}
	if person.SlackMemberID != "" && !slackMemberPattern.MatchString(person.SlackMemberID) {
		p.Errorf(at("slack"), "slack", "use the ID from `Copy member ID` in the person's profile; it begins with U or W",
			"invalid Slack member id `%s` of %s", person.SlackMemberID, person.Name)
	}
	same("slack", "Slack member", person.SlackMemberID, func(o Person) string { return o.SlackMemberID })
	same("kubernetes", "Kubernetes user", person.KubernetesUser, func(o Person) string { return o.KubernetesUser })
	if person.UID != nil && slices.ContainsFunc(before, func(o Person) bool {
		return o.UID != nil && *o.UID == *person.UID
	}) {
		p.Errorf(at("uid"), "duplicate", "give each person their own", "two people have the uid %d", *person.UID)
	}
	if slices.Contains(person.Groups, DrillScope) {
		p.Errorf(at("groups"), "name", "choose another name", "%s is in the group `%s`, which is reserved for drills",
			person.Name, DrillScope)
	}
}

// checkApproversExist reports unknown groups and users. at returns the position of an element of one of the two lists,
// "groups" or "users".
func (p *configParser) checkApproversExist(where string, groups, users []string, known knownNames,
	at func(key string, n int) yamlnode.Position,
) {
	for n, g := range groups {
		if !slices.Contains(known.groups, g) {
			p.Errorf(at("groups", n), "unknown-group", diagnostic.DidYouMean(g, known.groups),
				"%s: the group `%s` has no members", where, g)
		}
	}
	for n, u := range users {
		if !slices.Contains(known.people, u) {
			p.Errorf(at("users", n), "unknown-person", diagnostic.DidYouMean(u, known.people), "%s: unknown person `%s`",
				where, u)
		}
	}
}

func (p *configParser) checkSlack(s *Slack) {
	if s == nil {
		return
	}
	if !slackChannelPattern.MatchString(s.Channel) {
		p.Errorf(p.at("slack", "channel"), "slack", "use the ID at the bottom of the channel's details; it begins with C",
			"`slack.channel`: invalid channel id `%s`", s.Channel)
	}
	if s.BotTokenFile == "" {
		p.Errorf(p.at("slack", "bot_token_file"), "required",
			"write the bot token (xoxb-…) into a file that only Stanch can read",
			"`slack.bot_token_file` is missing")
	}
	if s.AppTokenFile == "" && s.SigningSecretFile == "" {
		p.Errorf(p.at("slack"), "required",
			"set `app_token_file` for Socket Mode, or `signing_secret_file` for requests to --listen",
			"`slack`: clicks cannot be received")
	}
}
