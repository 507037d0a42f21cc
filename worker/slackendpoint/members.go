package slackendpoint

import (
	"context"
	"fmt"
	"slices"

	"github.com/slack-go/slack"

	"stanch/sensors/truncate"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/httpserver"
)

// principalOf returns who a member is. Members of other workspaces, guests, bots and deactivated members are unknown.
func (s *Endpoint) principalOf(ctx context.Context, c slack.InteractionCallback) (decisions.Principal, error) {
	cfg, err := s.Roster.Current()
	if err != nil {
		return decisions.Principal{}, httpserver.Forbidden("%v", err)
	}
	person, known := cfg.PersonBySlack(c.User.ID)
	if !known {
		return decisions.Principal{}, httpserver.Forbidden(
			"You are not in Stanch's configuration. Ask for `slack: %s` to be added under `people`.", truncate.Name(c.User.ID))
	}
	team, err := s.botTeamID(ctx)
	if err != nil {
		return decisions.Principal{}, err
	}
	if c.Team.ID != team {
		return decisions.Principal{}, httpserver.Forbidden("Stanch belongs to another workspace.")
	}
	user, err := s.SlackClient.GetUserInfoContext(ctx, c.User.ID)
	if err != nil {
		return decisions.Principal{}, fmt.Errorf("get Slack member %s: %w", truncate.Name(c.User.ID), err)
	}
	for why, is := range map[string]bool{
		"deactivated": user.Deleted, "a bot": user.IsBot, "a guest": user.IsRestricted || user.IsUltraRestricted,
		"from another organization": user.IsStranger || user.TeamID != "" && user.TeamID != team,
	} {
		if is || user.ID != c.User.ID {
			return decisions.Principal{}, httpserver.Forbidden("Your account is %s and is not allowed to vote.", why)
		}
	}
	return decisions.Principal{Person: person, AuthenticatedBy: "Slack member " + c.User.ID, RateLimitKey: "slack:" +
		c.User.ID}, nil
}

// botTeamID returns the workspace of the bot's token.
func (s *Endpoint) botTeamID(ctx context.Context) (string, error) {
	s.botTeam.Lock()
	defer s.botTeam.Unlock()
	if s.botTeam.id == "" {
		me, err := s.SlackClient.AuthTestContext(ctx)
		if err != nil {
			return "", fmt.Errorf("get the workspace of the Slack bot: %w", err)
		}
		s.botTeam.id = me.TeamID
	}
	return s.botTeam.id, nil
}

// GroupsOfPerson asks Slack which of the user groups a person is in now.
func (s *Endpoint) GroupsOfPerson(ctx context.Context, p config.Person, wanted []config.Group) ([]string,
	error,
) {
	if p.SlackMemberID == "" {
		return nil, nil
	}
	var in []string
	for _, g := range wanted {
		members, err := s.SlackClient.GetUserGroupMembersContext(ctx, g.SlackUserGroup)
		if err != nil {
			return nil, fmt.Errorf("get the members of the Slack user group of %s: %w", g.Name, err)
		}
		if slices.Contains(members, p.SlackMemberID) {
			in = append(in, g.Name)
		}
	}
	return in, nil
}

// ApproverMentions returns the Slack mentions for an approval request.
type ApproverMentions struct{ Roster *config.Roster }

// ResolveMentions returns the Slack members and user groups of groups and people.
func (c ApproverMentions) ResolveMentions(groups, users []string) (members, userGroups []string) {
	cfg, err := c.Roster.Current()
	if err != nil {
		return nil, nil
	}
	for _, g := range cfg.Groups {
		if g.SlackUserGroup != "" && slices.Contains(groups, g.Name) {
			userGroups = append(userGroups, g.SlackUserGroup)
		}
	}
	for _, p := range cfg.People {
		if p.SlackMemberID != "" && (slices.Contains(users, p.Name) ||
			slices.ContainsFunc(p.Groups, func(g string) bool { return slices.Contains(groups, g) })) {
			members = append(members, p.SlackMemberID)
		}
	}
	return members, userGroups
}
