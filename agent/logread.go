package agent

import (
	"context"

	"machine/agent/fault"
	"machine/agent/model"
)

func readLog(ctx context.Context, c model.LogConfig, o model.LogOptions, done <-chan struct{}, f func(*model.LogRecord) error) error {
	return fault.NotImplemented.Errorf("logs")
}
