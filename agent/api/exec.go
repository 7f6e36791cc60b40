package api

import (
	"net/http"

	apicontainer "github.com/moby/moby/api/types/container"

	"machine/agent/api/stream"
	"machine/agent/fault"
)

func (s *Server) execs(o Options) {
	e := &execAPI{o.Execs}
	s.handle("POST", "containers/{id}/exec", e.create)
	s.handle("POST", "exec/{id}/start", e.start)
	s.handle("POST", "exec/{id}/resize", e.resize)
	s.handle("GET", "exec/{id}/json", e.inspect)
}

type execAPI struct{ b Execs }

func (e *execAPI) create(w http.ResponseWriter, r *request) error {
	var req apicontainer.ExecCreateRequest
	if err := r.readJSON(&req); err != nil {
		return err
	}
	id, err := e.b.ExecCreate(r.vars["id"], req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apicontainer.ExecCreateResponse{ID: id})
}

// start runs an exec. Detached it answers when the process was started;
// else the connection becomes the process's stdio, and a program that could
// not be run is told of in the stream, as the client expects.
func (e *execAPI) start(w http.ResponseWriter, r *request) error {
	var req apicontainer.ExecStartRequest
	if err := r.readJSON(&req); err != nil {
		return err
	}
	id := r.vars["id"]
	tty, err := e.b.ExecTTY(id)
	if err != nil {
		return err
	}
	in, err := e.b.ExecInspect(id)
	if err != nil {
		return err
	}
	if in.Running || in.ExitCode != nil {
		return fault.Conflict.Errorf("Error: Exec command %s has already run", id)
	}
	if req.Detach {
		st, err := e.b.ExecStart(r.Context(), id, req.ConsoleSize, true)
		if err != nil {
			return err
		}
		go func() { // a detached process still has its output read
			drain(st.Stdout, st.Stderr)
			st.Close()
		}()
		w.WriteHeader(http.StatusOK)
		return nil
	}
	keys, err := stream.ParseKeys(string(in.DetachKeys))
	if err != nil {
		return err
	}
	if !tty && len(in.DetachKeys) == 0 {
		keys = nil
	}
	conn, err := stream.Hijack(w, r.Request, streamType(r, tty))
	if err != nil {
		return err
	}
	defer conn.Close()
	st, err := e.b.ExecStart(r.Context(), id, req.ConsoleSize, false)
	if err != nil {
		tellFailure(conn, tty, err)
		return nil
	}
	input, gone := readAhead(conn)
	pump(conn, st.Streams, in.OpenStdin, input, gone, keys, wanted(outputs(conn, tty), in), func() { st.Wait(r.Context()) })
	return nil
}

// wanted drops the streams that the exec was not created with.
func wanted(s sinks, in *apicontainer.ExecInspectResponse) sinks {
	if !in.OpenStdout {
		s.stdout = nowhere{}
	}
	if !in.OpenStderr {
		s.stderr = nowhere{}
	}
	if in.ProcessConfig.Tty && in.OpenStdout {
		s.stderr = s.stdout
	}
	return s
}

type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

// tellFailure writes why the process does not run.
func tellFailure(conn *stream.Conn, tty bool, err error) {
	msg := []byte(err.Error() + "\r\n")
	if tty {
		conn.Write(msg)
	} else {
		stream.NewMux(conn).Frame(stream.Stdout, msg)
	}
	conn.CloseWrite()
}

func (e *execAPI) resize(w http.ResponseWriter, r *request) error {
	h, wd, err := size(r)
	if err != nil {
		return err
	}
	if err := e.b.ExecResize(r.vars["id"], h, wd); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (e *execAPI) inspect(w http.ResponseWriter, r *request) error {
	in, err := e.b.ExecInspect(r.vars["id"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, in)
}
