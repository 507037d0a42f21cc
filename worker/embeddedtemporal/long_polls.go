package embeddedtemporal

import (
	"context"
	"strings"

	"google.golang.org/grpc"
)

// longPolls are the requests that wait for work. Temporal's own workers always have some, so that a graceful stop of
// the server would wait for its time limit of one second and then end them. A poll that ends has taken no task.
type longPolls struct {
	ended context.Context //nolint:containedctx // of all polls
	end   context.CancelFunc
}

func newLongPolls() *longPolls {
	p := &longPolls{}
	p.ended, p.end = context.WithCancel(context.Background())
	return p
}

// intercept ends a poll when end is called. Other requests are not affected.
func (p *longPolls) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo,
	handle grpc.UnaryHandler,
) (any, error) {
	if _, method, _ := strings.Cut(info.FullMethod[1:], "/"); !strings.HasPrefix(method, "Poll") {
		return handle(ctx, request)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ended, cancel)() //nolint:contextcheck // the end of the server, not of a request
	return handle(ctx, request)
}
