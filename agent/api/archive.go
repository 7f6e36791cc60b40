package api

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"sync"

	apicontainer "github.com/moby/moby/api/types/container"

	"machine/agent/fault"
	"machine/agent/model"
)

// drain reads streams to their end.
func drain(rs ...io.Reader) {
	var wg sync.WaitGroup
	for _, r := range rs {
		if r != nil {
			wg.Go(func() { io.Copy(io.Discard, r) })
		}
	}
	wg.Wait()
}

// setStat puts the description of a path into the header that docker cp
// reads.
func setStat(w http.ResponseWriter, st model.PathStat) {
	b, _ := json.Marshal(apicontainer.PathStat{Name: st.Name, Size: st.Size, Mode: st.Mode, Mtime: st.Mtime, LinkTarget: st.LinkTarget})
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(b))
}

func archivePath(r *request) (string, error) {
	p := r.query("path")
	if p == "" {
		return "", fault.Invalid.Errorf("missing parameter: path must not be empty")
	}
	if p[0] != '/' {
		p = "/" + p
	}
	return p, nil
}

func (c *containerAPI) headArchive(w http.ResponseWriter, r *request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	st, err := c.b.Files.StatPath(r.Context(), r.vars["id"], p)
	if err != nil {
		return err
	}
	setStat(w, st)
	w.WriteHeader(http.StatusOK)
	return nil
}

func (c *containerAPI) getArchive(w http.ResponseWriter, r *request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	begun := false
	err = c.b.Files.Archive(r.Context(), r.vars["id"], p, func(st model.PathStat) io.Writer {
		begun = true
		setStat(w, st)
		w.Header().Set("Content-Type", "application/x-tar")
		w.WriteHeader(http.StatusOK)
		return w
	})
	return cut(begun, err)
}

// cut ends a stream that failed in the middle so that the client sees it: a
// clean end would pass for a whole archive.
func cut(begun bool, err error) error {
	if err != nil && begun {
		panic(http.ErrAbortHandler)
	}
	return err
}

func (c *containerAPI) putArchive(w http.ResponseWriter, r *request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	err = c.b.Files.Extract(r.Context(), r.vars["id"], p, r.Body, r.boolean("noOverwriteDirNonDir"), r.boolean("copyUIDGID"))
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (c *containerAPI) export(w http.ResponseWriter, r *request) error {
	if _, err := c.b.Info.Inspect(r.Context(), r.vars["id"], false); err != nil {
		return err
	}
	cw := &startedWriter{w: w}
	w.Header().Set("Content-Type", "application/octet-stream")
	err := c.b.Files.Export(r.Context(), r.vars["id"], cw)
	return cut(cw.started, err)
}

// startedWriter remembers that the answer has begun.
type startedWriter struct {
	w       io.Writer
	started bool
}

func (s *startedWriter) Write(p []byte) (int, error) {
	s.started = true
	return s.w.Write(p)
}
