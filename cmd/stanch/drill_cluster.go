package main

import (
	"context"
	"errors"
)

func newClusterStage(context.Context, drillOptions, string) (stage, error) {
	return nil, errors.New("not yet")
}
