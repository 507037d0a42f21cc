package worker

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/slack-go/slack"

	"stanch/activities"
	view "stanch/activities/slack"
	"stanch/worker/config"
	"stanch/worker/slackendpoint"
)

// openSlack creates the messenger and the receiver of clicks, if Slack is configured. It makes no calls to Slack, so
// that an outage does not delay the start.
func (w *Worker) openSlack() error {
	c := w.Config.Slack
	if c == nil {
		return nil
	}
	api, err := slackClient(c)
	if err != nil {
		return err
	}
	s := &slackendpoint.Endpoint{Service: w.Decisions, SlackClient: api, Channel: c.Channel}
	if c.SigningSecretFile != "" {
		if s.SigningSecret, err = config.ReadSecretFile("slack.signing_secret_file", c.SigningSecretFile); err != nil {
			return err
		}
		if w.SourceListen == "" {
			return fmt.Errorf("slack.signing_secret_file: missing --listen ADDRESS, to which Slack sends its requests")
		}
	}
	w.slack, w.Decisions.GroupMembership = s, s
	w.Activities.Messenger = &view.Messenger{
		SlackClient: s.SlackClient, Channel: c.Channel, Reader: w.Queries, Signer: w.Authority,
		MentionResolver: slackendpoint.ApproverMentions{Roster: w.Decisions.Roster}, ManifestHead: w.manifestHead, Log: w.Log,
		BreakGlassEnabled: slices.ContainsFunc(w.Config.People, func(p config.Person) bool { return p.BreakGlass }),
	}
	return nil
}

// slackClient returns a client with the configured tokens.
func slackClient(c *config.Slack) (*slack.Client, error) {
	options := []slack.Option{slack.OptionHTTPClient(&http.Client{Timeout: 10 * time.Second})}
	if c.APIURL != "" {
		options = append(options, slack.OptionAPIURL(strings.TrimSuffix(c.APIURL, "/")+"/"))
	}
	bot, err := config.ReadSecretFile("slack.bot_token_file", c.BotTokenFile)
	if err != nil {
		return nil, err
	}
	if c.AppTokenFile != "" {
		app, err := config.ReadSecretFile("slack.app_token_file", c.AppTokenFile)
		if err != nil {
			return nil, err
		}
		options = append(options, slack.OptionAppLevelToken(app))
	}
	return slack.New(bot, options...), nil
}

// CheckSlack returns Stanch's identity in Slack, and an error if it cannot read its channel, which it must after a
// crash.
func CheckSlack(ctx context.Context, c *config.Slack) (string, error) {
	api, err := slackClient(c)
	if err != nil {
		return "", err
	}
	me, err := api.AuthTestContext(ctx)
	if err != nil {
		return "", fmt.Errorf("get Stanch's identity in Slack: %w", err)
	}
	if _, err := api.GetConversationHistoryContext(ctx, &slack.GetConversationHistoryParameters{
		ChannelID: c.Channel,
		Limit:     1,
	}); err != nil {
		return "", fmt.Errorf("read the channel %s: %w", c.Channel, err)
	}
	return fmt.Sprintf("%s in %s, channel %s", me.User, me.Team, c.Channel), nil
}

// lazyNotifier posts through the worker's messenger, which is created after the actions that use it.
type lazyNotifier struct{ worker *Worker }

func (d lazyNotifier) Post(ctx context.Context, incident activities.IncidentRef, key, text string) error {
	if d.worker.Activities.Messenger == nil {
		return activities.Refusef("Slack is not configured; add `slack:` to stanch.yaml")
	}
	return d.worker.Activities.Messenger.Post(ctx, incident, key, text) //nolint:wrapcheck // the error names the incident
}

// manifestHead returns the last line's hash of an incident's manifest.
func (w *Worker) manifestHead(incident string) string {
	lines, _, err := w.Activities.Evidence.Manifest(incident, w.Authority.Keyring())
	if err != nil {
		return ""
	}
	return activities.LastLineHash(lines)
}

// runSlackSocketMode receives clicks by Socket Mode, if configured.
func (w *Worker) runSlackSocketMode(ctx context.Context) {
	if w.slack == nil || w.Config.Slack.AppTokenFile == "" {
		return
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.closers = append(w.closers, func() { stop() })
	go w.slack.Run(ctx)
}
