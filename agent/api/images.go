package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"machine/agent/image"
	"machine/agent/model"
)

// Images is the engine's image store.
type Images interface {
	Usage(ctx context.Context) (images any, layersSize int64, err error)
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) (*model.Image, error)
	Load(ctx context.Context, r io.Reader, progress model.Progress) ([]image.Loaded, error)
	Get(ctx context.Context, ref string) (*model.Image, error)
	List(ctx context.Context) ([]image.Summary, error)
}

func (s *Server) images(o Options) {
	b := o.Images
	s.handle("POST", "images/create", func(w http.ResponseWriter, r *request) error {
		img, err := b.Import(r.Context(), r.Body, image.ImportOptions{Ref: r.query("repo"), Changes: r.URL.Query()["changes"]})
		if err != nil {
			return err
		}
		return json.NewEncoder(w).Encode(map[string]string{"status": string(img.ID)})
	})
	s.handle("GET", "images/json", func(w http.ResponseWriter, r *request) error {
		l, err := b.List(r.Context())
		if err != nil {
			return err
		}
		out := []any{}
		for _, i := range l {
			out = append(out, map[string]any{"Id": i.ID, "RepoTags": i.RepoTags, "RepoDigests": i.Digests, "Created": i.Created.Unix(), "Size": i.Size, "SharedSize": -1, "Containers": -1, "ParentId": "", "Labels": nil})
		}
		return writeJSON(w, 200, out)
	})
}
