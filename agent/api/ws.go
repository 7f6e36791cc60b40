package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"golang.org/x/net/websocket"

	"machine/agent/api/stream"
	"machine/agent/model"
)

// attachWS connects a client by websocket: one message stream each way, both
// outputs merged, as moby does. Which streams are wanted is asked as for
// attach.
func (c *containerAPI) attachWS(w http.ResponseWriter, r *request) error {
	o := model.AttachOptions{Stdin: r.boolean("stdin"), Stdout: r.boolean("stdout"), Stderr: r.boolean("stderr")}
	keys, err := stream.ParseKeys(r.query("detachKeys"))
	if err != nil {
		return err
	}
	a, err := c.b.Streams.Attach(r.vars["id"], o)
	if err != nil {
		return err
	}
	if !a.TTY && r.query("detachKeys") == "" {
		keys = nil
	}
	srv := websocket.Server{Handler: func(ws *websocket.Conn) {
		ws.PayloadType = websocket.BinaryFrame
		defer ws.Close()
		c.serveWS(ws, r, a.Streams, o, keys)
	}}
	srv.ServeHTTP(w, r.Request)
	return nil
}

// serveWS joins a websocket and a container until either ends.
func (c *containerAPI) serveWS(ws *websocket.Conn, r *request, open func(context.Context) (*model.Streams, error), o model.AttachOptions, keys []byte) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out := &lockedWriter{w: ws}
	if r.boolean("logs") {
		c.replay(ctx, r, o, sinks{out, out})
	}
	if !r.boolean("stream") {
		return
	}
	in, gone := io.Pipe()
	go func() {
		_, err := io.Copy(gone, ws)
		gone.CloseWithError(errors.Join(io.EOF, err))
		cancel()
	}()
	st, err := open(ctx)
	if err != nil {
		return
	}
	defer st.Close()
	go func() {
		if st.Stdin == nil {
			io.Copy(io.Discard, in)
			return
		}
		io.Copy(st.Stdin, stream.NewDetachReader(in, keys))
		st.Stdin.Close()
	}()
	var wg sync.WaitGroup
	for _, rd := range []io.Reader{st.Stdout, st.Stderr} {
		if rd != nil {
			wg.Go(func() { copyOut(out, rd) })
		}
	}
	sent := make(chan struct{})
	go func() { wg.Wait(); close(sent) }()
	select {
	case <-sent:
	case <-ctx.Done(): // the client closed its end
	}
}

// lockedWriter lets two outputs share a websocket.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
