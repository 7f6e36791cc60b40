package api

import (
	"net/http"

	"golang.org/x/net/websocket"
)

// attachWS connects a client by websocket: one message stream each way, both
// outputs merged, as moby does. Which streams are wanted is asked as for
// attach.
func (c *containerAPI) attachWS(w http.ResponseWriter, r *request) error {
	a, err := c.attachment(r)
	if err != nil {
		return err
	}
	srv := websocket.Server{Handler: func(ws *websocket.Conn) {
		ws.PayloadType = websocket.BinaryFrame
		defer ws.Close()
		c.serveAttached(r, a, wsClient{ws}, sinks{ws, ws})
	}}
	srv.ServeHTTP(w, r.Request)
	return nil
}

// wsClient knows no half-closed connection: a websocket ends for both.
type wsClient struct{ *websocket.Conn }

func (wsClient) CloseWrite() error { return nil } // Close follows
func (wsClient) HungUp() bool      { return true }
