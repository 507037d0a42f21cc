package embeddedtemporal

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"
)

func TestStopEndsOnlyPolls(t *testing.T) {
	p := newLongPolls()
	request := func(method string) (context.Context, chan error) {
		running, ended := make(chan context.Context, 1), make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		t.Cleanup(cancel)
		go func() {
			_, err := p.intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/temporal.WorkflowService/" + method},
				func(ctx context.Context, _ any) (any, error) {
					running <- ctx
					<-ctx.Done()
					return nil, ctx.Err()
				})
			ended <- err
		}()
		return <-running, ended
	}
	_, poll := request("PollWorkflowTaskQueue")
	start, _ := request("StartWorkflowExecution")
	p.end()
	if err := <-poll; !errors.Is(err, context.Canceled) {
		t.Errorf("the poll ended with %v", err)
	}
	if err := start.Err(); err != nil {
		t.Errorf("another request ended: %v", err)
	}
	_, late := request("PollActivityTaskQueue")
	if err := <-late; !errors.Is(err, context.Canceled) {
		t.Errorf("a poll after the end ended with %v", err)
	}
}
