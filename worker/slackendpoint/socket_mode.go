package slackendpoint

import (
	"context"
	"log/slog"
	"time"

	"github.com/slack-go/slack"
	"github.com/slack-go/slack/socketmode"
)

// maxRedialDelay is the maximum delay before reconnecting to Slack.
const maxRedialDelay = 15 * time.Second

// Run receives clicks by Socket Mode until ctx ends. It reconnects automatically.
func (s *Endpoint) Run(ctx context.Context) {
	for ctx.Err() == nil {
		s.runConnection(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(maxRedialDelay / 3):
		}
	}
}

// runConnection receives clicks until a new connection is better: during an outage, the library waits for minutes.
func (s *Endpoint) runConnection(ctx context.Context) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	client := socketmode.New(s.SlackClient, socketmode.OptionLog(slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)))
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-client.Events:
				switch data := e.Data.(type) {
				case slack.InteractionCallback:
					go s.handleSocketRequest(ctx, client, e.Request, data)
				case *slack.ConnectionErrorEvent:
					s.Log.Warn("could not connect to Slack; retrying", "error", data.ErrorObj, "attempt", data.Attempt)
					if data.Backoff > maxRedialDelay {
						end()
					}
				}
			}
		}
	}()
	if err := client.RunContext(ctx); err != nil && ctx.Err() == nil {
		s.Log.Warn("the connection to Slack was closed; reconnecting", "error", err)
	}
}

func (s *Endpoint) handleSocketRequest(ctx context.Context, client *socketmode.Client,
	request *socketmode.Request, callback slack.InteractionCallback,
) {
	if request == nil || !s.replayCache.isFirst(request.EnvelopeID, time.Now()) {
		return
	}
	inTime, cancel := context.WithTimeout(ctx, clickTimeout)
	defer cancel()
	answer, err := s.handleInteraction(inTime, callback)
	if err != nil {
		s.replayCache.forget(request.EnvelopeID) // not acknowledged: Slack shows the person an error
		return
	}
	if err := client.AckCtx(ctx, request.EnvelopeID, answer); err != nil {
		s.Log.Warn("acknowledge a click", "error", err)
	}
}
