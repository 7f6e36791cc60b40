package api

import (
	"context"
)

// Images is the engine's image store.
type Images interface {
	Usage(ctx context.Context) (images any, layersSize int64, err error)
}

func (s *Server) images(Options) {}
