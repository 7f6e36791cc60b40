package api

import "net/http"

// attachWS connects a client by websocket.
func (c *containerAPI) attachWS(w http.ResponseWriter, r *request) error {
	return notBuilt("attach by websocket")(w, r)
}
