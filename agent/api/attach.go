package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"machine/agent/api/stream"
	"machine/agent/container"
	"machine/agent/fault"
	"machine/agent/model"
)

// attach connects a client to a container by the connection itself.
func (c *containerAPI) attach(w http.ResponseWriter, r *request) error {
	a, err := c.attachment(r)
	if err != nil {
		return err
	}
	conn, err := stream.Hijack(w, r.Request, streamType(r, a.TTY))
	if err != nil {
		return err
	}
	defer conn.Close()
	c.serveAttached(r, a, conn, outputs(conn, a.TTY))
	return nil
}

// An attachment is what a client asks to be connected to.
type attachment struct {
	*container.Attach
	want model.AttachOptions
	keys []byte // that detach; nil for none
}

func (c *containerAPI) attachment(r *request) (a attachment, err error) {
	a.want = model.AttachOptions{Stdin: r.boolean("stdin"), Stdout: r.boolean("stdout"), Stderr: r.boolean("stderr")}
	if a.keys, err = stream.ParseKeys(r.query("detachKeys")); err != nil {
		return a, err
	}
	if a.Attach, err = c.b.Streams.Attach(r.vars["id"], a.want); err != nil {
		return a, err
	}
	if !a.TTY && r.query("detachKeys") == "" {
		a.keys = nil
	}
	return a, nil
}

// A client is who is attached: it is read for input.
type client interface {
	io.Reader
	CloseWrite() error // tells it that there is no more output
	HungUp() bool      // whether the end of its input is its going away
}

// serveAttached gives a client what was logged already (logs), what comes
// (stream), and passes its input on.
func (c *containerAPI) serveAttached(r *request, a attachment, who client, out sinks) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if r.boolean("logs") {
		c.replay(ctx, r, a.want, out)
	}
	if !r.boolean("stream") {
		return
	}
	in, gone := readAhead(who)
	go func() { // a client that goes away before the container starts
		select {
		case <-gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	st, err := a.Streams(ctx)
	if err != nil {
		return // the client reads of it by the start call
	}
	defer st.Close()
	pump(who, st, a.want.Stdin, in, gone, a.keys, out, func() {})
}

// readAhead reads the client's input into a small pipe, so that its going
// away is seen even while nobody wants input and nothing is said to it. gone
// is closed when the connection failed or ended; a half-close is not that.
func readAhead(who client) (io.Reader, <-chan struct{}) {
	pr, pw := io.Pipe()
	gone := make(chan struct{})
	go func() {
		_, err := io.Copy(pw, who)
		pw.CloseWithError(io.EOF)
		if !errors.Is(err, io.ErrClosedPipe) && (err != nil || who.HungUp()) {
			close(gone)
		}
	}()
	return pr, gone
}

// streamType is the content type that a client expects.
func streamType(r *request, tty bool) string {
	if tty || r.before("1.42") {
		return stream.Raw
	}
	return stream.Multiplexed
}

// sinks are where the outputs go.
type sinks struct{ stdout, stderr io.Writer }

func outputs(w io.Writer, tty bool) sinks {
	if tty {
		return sinks{w, w}
	}
	m := stream.NewMux(w)
	return sinks{m.Writer(stream.Stdout), m.Writer(stream.Stderr)}
}

// pump copies between a client and a process until all output has been sent
// or the client went away or detached. booked is waited for before the client
// is told of the end: it asks for the exit code next.
func pump(who client, st *model.Streams, stdin bool, in io.Reader, gone <-chan struct{}, keys []byte, out sinks, booked func()) {
	detached, fed := make(chan struct{}), make(chan struct{})
	if stdin && st.Stdin != nil {
		go func() {
			_, err := io.Copy(st.Stdin, stream.NewDetachReader(in, keys))
			if errors.Is(err, stream.ErrDetached) {
				close(detached)
			} else {
				st.Stdin.Close()
				close(fed)
			}
			io.Copy(io.Discard, in) // nobody takes more: let the client finish sending
		}()
	} else {
		close(fed)
		go io.Copy(io.Discard, in)
	}
	var wg sync.WaitGroup
	for _, p := range []struct {
		r io.Reader
		w io.Writer
	}{{st.Stdout, out.stdout}, {st.Stderr, out.stderr}} {
		if p.r != nil {
			wg.Go(func() { copyOut(p.w, p.r) })
		}
	}
	sent := make(chan struct{})
	go func() { wg.Wait(); close(sent) }()
	select {
	case <-sent:
		booked()
		who.CloseWrite()
	case <-detached:
	case <-gone: // what it sent before it went still counts
		select {
		case <-fed:
		case <-sent:
		case <-detached:
		}
	}
	st.Close()
}

// copyOut copies in pieces that fit a frame.
func copyOut(w io.Writer, r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// replay writes what was logged.
func (c *containerAPI) replay(ctx context.Context, r *request, o model.AttachOptions, out sinks) {
	c.b.Streams.Logs(ctx, r.vars["id"], model.LogOptions{Tail: -1}, func(rec *model.LogRecord) error {
		return writeRecord(out, rec, o.Stdout, o.Stderr, false, false)
	})
}

// logs answers docker logs.
func (c *containerAPI) logs(w http.ResponseWriter, r *request) error {
	stdout, stderr := r.boolean("stdout"), r.boolean("stderr")
	if !stdout && !stderr {
		return fault.Invalid.Errorf("Bad parameters: you must choose at least one stream")
	}
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	tty, err := c.b.Streams.LogInfo(r.vars["id"])
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", streamType(r, tty))
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	rc.Flush()
	bw := newBatchWriter(w, rc)
	defer bw.Close()
	out := outputs(bw, tty)
	stamps, details := r.boolean("timestamps"), r.boolean("details")
	err = c.b.Streams.Logs(r.Context(), r.vars["id"], o, func(rec *model.LogRecord) error {
		return writeRecord(out, rec, stdout, stderr, stamps, details)
	})
	if err != nil && r.Context().Err() == nil && !tty {
		stream.NewMux(bw).Frame(stream.System, []byte("Error grabbing logs: "+err.Error()))
	}
	return nil
}

func logOptions(r *request) (o model.LogOptions, err error) {
	now := time.Now()
	if o.Since, err = model.ParseTime(r.query("since"), now); err != nil {
		return o, err
	}
	if o.Until, err = model.ParseTime(r.query("until"), now); err != nil {
		return o, err
	}
	o.Follow = r.boolean("follow")
	o.Tail = -1
	if t := r.query("tail"); t != "" && t != "all" {
		if n, err := strconv.Atoi(t); err == nil && n >= 0 {
			o.Tail = n
		}
	}
	return o, nil
}

// stampFormat is RFC 3339 with nine digits always, so that lines align.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// writeRecord sends one log record.
func writeRecord(out sinks, rec *model.LogRecord, stdout, stderr, stamps, details bool) error {
	w, want := out.stdout, stdout
	if rec.Stream == "stderr" {
		w, want = out.stderr, stderr
	}
	if !want {
		return nil
	}
	line := rec.Line
	if stamps || details {
		var pre []byte
		if stamps {
			pre = append(rec.Time.UTC().AppendFormat(pre, stampFormat), ' ')
		}
		if details {
			pre = append(appendAttrs(pre, rec.Attrs), ' ')
		}
		line = append(pre, line...)
	}
	_, err := w.Write(line)
	return err
}
