package docker

import (
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/websocket"

	"machine/acceptance/engine"
)

// TestWebsocket attaches as browsers do.
func TestWebsocket(t *testing.T) {
	e := start(t)
	e.Run("run", "-d", "-i", "--name", "ws", "busybox", "sh", "-c", "echo early; cat")
	e.Eventually("it has spoken", func() bool { return e.Run("logs", "ws") == "early" })
	c, err := net.Dial("unix", e.AgentSocket())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := websocket.NewConfig("ws://engine/v1.51/containers/ws/attach/ws?logs=1&stream=1&stdin=1&stdout=1&detachKeys=ctrl-p,ctrl-q", "http://engine")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(cfg, c)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if _, err := ws.Write([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	buf := make([]byte, 256)
	for !strings.Contains(got.String(), "typed\n") {
		n, err := ws.Read(buf)
		got.Write(buf[:n])
		if err == io.EOF || err != nil {
			break
		}
	}
	engine.Equal(t, "what came", got.String(), "early\ntyped\n")
	if _, err := ws.Write([]byte("\x10\x11")); err != nil {
		t.Fatal(err)
	}
	if n, err := ws.Read(buf); err != io.EOF {
		t.Errorf("after the detach keys: %q, %v", buf[:n], err)
	}
	engine.Equal(t, "its input is still open", e.Run("inspect", "-f", "{{.State.Running}}", "ws"), "true")
	e.Audit()
}
