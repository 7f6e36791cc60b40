package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"machine/agent/fault"
	"machine/agent/model"
)

// A messages is a stream of progress: one JSON object a line, ended by CRLF,
// each sent at once. Until the first one the answer can still be an HTTP
// error; afterwards errors are lines, too. It is safe for concurrent use.
type messages struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	rc      *http.ResponseController
	started bool
	ended   bool
	quiet   bool // no progress, only results
}

func newMessages(w http.ResponseWriter) *messages {
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex() // bodies are read while the answer is written
	return &messages{w: w, rc: rc}
}

// line is one message, with the old fields beside the new ones.
type line struct {
	Stream   string        `json:"stream,omitempty"`
	Status   string        `json:"status,omitempty"`
	Detail   *detail       `json:"progressDetail,omitempty"`
	Progress string        `json:"progress,omitempty"`
	ID       string        `json:"id,omitempty"`
	Error    *messageError `json:"errorDetail,omitempty"`
	OldError string        `json:"error,omitempty"`
	Aux      any           `json:"aux,omitempty"`
}

type detail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}

type messageError struct {
	Code    int    `json:"code,omitempty"`
	Message string `json:"message"`
}

// event sends progress.
func (m *messages) event(e model.ProgressEvent) {
	l := line{Stream: e.Stream, Status: e.Status, ID: e.ID, Aux: e.Aux}
	if m.quiet && l.Stream == "" && l.Aux == nil {
		return
	}
	if e.Status != "" && e.ID != "" && !e.Plain || e.Total > 0 {
		l.Detail = &detail{e.Current, e.Total}
	}
	if e.Current > 0 {
		l.Progress = bar(e.Current, e.Total)
	}
	m.send(l)
}

func (m *messages) send(l line) {
	b, err := json.Marshal(l)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	m.start()
	if _, err := m.w.Write(append(b, '\r', '\n')); err == nil {
		m.rc.Flush()
	}
}

// start sends the header. m.mu is held.
func (m *messages) start() {
	if !m.started {
		m.started = true
		m.w.Header().Set("Content-Type", "application/json")
		m.w.WriteHeader(http.StatusOK)
	}
}

// begin commits the answer to the stream: from here on errors are lines.
func (m *messages) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.start()
}

// end ends the stream: with an error as a line when it has begun, else by
// returning it for the HTTP status.
func (m *messages) end(err error) error {
	if err != nil {
		m.mu.Lock()
		begun := m.started
		m.mu.Unlock()
		if !begun {
			return err
		}
		code := 0
		if fault.Is(err, fault.Unauthorized) {
			code = http.StatusUnauthorized
		}
		m.send(line{Error: &messageError{code, err.Error()}, OldError: err.Error()})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
	m.start()
	return nil
}

// bar is what old clients print as it is.
func bar(current, total int64) string {
	if total <= 0 || current > total {
		return bytesText(current)
	}
	n := int(current * 50 / total)
	arrow := strings.Repeat("=", n) + ">"
	return fmt.Sprintf("[%-50s]  %s/%s", arrow[:min(len(arrow), 50)], bytesText(current), bytesText(total))
}

// bytesText writes sizes as Docker does: 4 digits, powers of 1000.
func bytesText(n int64) string {
	f := float64(n)
	for _, u := range []string{"B", "kB", "MB", "GB", "TB"} {
		if f < 1000 || u == "TB" {
			return fmt.Sprintf("%.4g%s", f, u)
		}
		f /= 1000
	}
	return ""
}
