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

// wall is a desk that answers as it is told, about an incident that ended as it is told.
type wall struct {
	ending activities.Ending
	away   error
}

func (w wall) Look(_ context.Context, in activities.LookInput) (activities.LookResult, error) {
	return activities.LookResult{State: in.State}, w.away
}
func (wall) Say(context.Context, activities.Brief, string, string) error { return nil }
func (w wall) Ending(context.Context, string) (activities.Ending, error) { return w.ending, nil }

// A message is kept as long as there is something to show, and no longer.
func TestAThreadEndsWithItsIncident(t *testing.T) {
	now, away := time.Now(), errors.New("the channel is archived")
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, c := range map[string]struct {
		wall
		noDesk bool
		later  time.Duration // since the activity was scheduled
		done   bool
	}{
		"open":                                     {},
		"open, and the chat is away":               {wall: wall{away: away}},
		"open, for days":                           {wall: wall{away: away}, later: 72 * time.Hour},
		"terminated, and shown":                    {wall: wall{ending: activities.Ending{At: ago(time.Minute), Broken: true}}, done: true},
		"terminated, and the chat is away":         {wall: wall{ending: activities.Ending{At: ago(time.Minute), Broken: true}, away: away}},
		"terminated two days ago, it cannot be":    {wall: wall{ending: activities.Ending{At: ago(48 * time.Hour), Broken: true}, away: away}, done: true},
		"closed, and the chat is away":             {wall: wall{ending: activities.Ending{At: ago(23 * time.Hour)}, away: away}},
		"closed two days ago, the chat still away": {wall: wall{ending: activities.Ending{At: ago(48 * time.Hour)}, away: away}, done: true},
		"not listed yet":                           {wall: wall{ending: activities.Ending{Gone: true}, away: away}, later: time.Minute},
		"gone":                                     {wall: wall{ending: activities.Ending{Gone: true}, away: away}, later: time.Hour, done: true},
		"no chat any more, open":                   {noDesk: true},
		"no chat any more, closed":                 {noDesk: true, wall: wall{ending: activities.Ending{At: ago(time.Minute)}}, done: true},
	} {
		t.Run(name, func(t *testing.T) {
			set := activities.NewSet()
			set.Endings, set.Now = c.wall, func() time.Time { return now.Add(c.later) }
			if !c.noDesk {
				set.Desk = c.wall
			}
			var suite testsuite.WorkflowTestSuite
			env := suite.NewTestActivityEnvironment()
			env.RegisterActivity(set.Look)
			state := activities.ThreadState{TS: "1.1"}
			value, err := env.ExecuteActivity(set.Look, activities.LookInput{Incident: incident, State: state})
			if c.away != nil && !c.done {
				require.ErrorContains(t, err, "archived")
				return
			}
			require.NoError(t, err)
			var out activities.LookResult
			require.NoError(t, value.Get(&out))
			require.Equal(t, c.done, out.Done)
			require.Equal(t, state, out.State)
		})
	}
}
