package activities_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"stanch/activities"
)

// fakeMessenger is a messenger with a configurable result, for an incident with a configurable end.
type fakeMessenger struct {
	closure   activities.Closure
	syncError error
}

func (w fakeMessenger) SyncMessage(_ context.Context, in activities.SyncMessageInput) (activities.SyncMessageResult,
	error,
) {
	return activities.SyncMessageResult{State: in.State}, w.syncError
}

func (fakeMessenger) Post(context.Context, activities.IncidentRef, string, string) error { return nil }

func (w fakeMessenger) Closure(context.Context, string) (activities.Closure, error) {
	return w.closure, nil
}

// A message is updated as long as there is something to show, and no longer.
func TestMessageSyncEndsWithIncident(t *testing.T) {
	now, away := time.Now(), errors.New("the channel is archived")
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, c := range map[string]struct {
		fakeMessenger
		noDesk bool
		later  time.Duration // time since the activity was scheduled
		done   bool
	}{
		"open":                       {},
		"open, and the chat is away": {fakeMessenger: fakeMessenger{syncError: away}},
		"open, for days":             {fakeMessenger: fakeMessenger{syncError: away}, later: 72 * time.Hour},
		"terminated, and shown": {
			fakeMessenger: fakeMessenger{
				closure: activities.Closure{ClosedAt: ago(time.Minute), Abnormal: true},
			}, done: true,
		},
		"terminated, and the chat is away": {
			fakeMessenger: fakeMessenger{
				closure: activities.Closure{ClosedAt: ago(time.Minute), Abnormal: true}, syncError: away,
			},
		},
		"terminated two days ago, it cannot be": {
			fakeMessenger: fakeMessenger{
				closure: activities.Closure{ClosedAt: ago(48 * time.Hour), Abnormal: true}, syncError: away,
			}, done: true,
		},
		"closed, and the chat is away": {
			fakeMessenger: fakeMessenger{
				closure: activities.Closure{ClosedAt: ago(23 * time.Hour)}, syncError: away,
			},
		},
		"closed two days ago, the chat still away": {
			fakeMessenger: fakeMessenger{
				closure: activities.Closure{ClosedAt: ago(48 * time.Hour)}, syncError: away,
			}, done: true,
		},
		"not listed yet": {fakeMessenger: fakeMessenger{
			closure:   activities.Closure{NotFound: true},
			syncError: away,
		}, later: time.Minute},
		"gone": {fakeMessenger: fakeMessenger{
			closure:   activities.Closure{NotFound: true},
			syncError: away,
		}, later: time.Hour, done: true},
		"no chat anymore, open": {noDesk: true},
		"no chat anymore, closed": {
			noDesk:        true,
			fakeMessenger: fakeMessenger{closure: activities.Closure{ClosedAt: ago(time.Minute)}}, done: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			set := activities.NewActivities()
			set.ClosureReader, set.Now = c.fakeMessenger, func() time.Time { return now.Add(c.later) }
			if !c.noDesk {
				set.Messenger = c.fakeMessenger
			}
			var suite testsuite.WorkflowTestSuite
			env := suite.NewTestActivityEnvironment()
			env.RegisterActivity(set.SyncMessage)
			state := activities.MessageState{MessageTS: "1.1"}
			value, err := env.ExecuteActivity(set.SyncMessage, activities.SyncMessageInput{
				IncidentID: testIncidentID,
				State:      state,
			})
			if c.syncError != nil && !c.done {
				require.ErrorContains(t, err, "archived")
				return
			}
			require.NoError(t, err)
			var out activities.SyncMessageResult
			require.NoError(t, value.Get(&out))
			require.Equal(t, c.done, out.Done)
			require.Equal(t, state, out.State)
		})
	}
}
