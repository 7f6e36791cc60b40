package docker

import (
	"strings"
	"testing"
	"time"
)

// A stop right behind a start reaches the program under --init: process 1
// does not lose what is sent before it can catch signals.
func TestInitHearsAtOnce(t *testing.T) {
	e := start(t)
	for range 30 {
		_, body := e.Do("POST", "/containers/create?name=cc", `{"Image":"busybox","Cmd":["sleep","1000"],"HostConfig":{"Init":true}}`)
		if code, out := e.Do("POST", "/containers/cc/start", ""); code != 204 {
			t.Fatalf("start: %d %s %s", code, out, body)
		}
		begin := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.Do("POST", "/containers/cc/stop?t=5", "")
		}()
		select {
		case <-done:
		case <-time.After(3 * time.Second):
			pid := e.Run("inspect", "-f", "{{.State.Pid}}", "cc")
			out, _ := e.HostRun("sh", "-c", "grep -E 'Sig|Shd' /proc/"+pid+"/task/*/status; cat /proc/"+pid+"/task/*/children; for c in $(cat /proc/"+pid+"/task/*/children); do grep -E 'Name|Sig|Shd|State' /proc/$c/status; done")
			t.Log(out)
			<-done
		}
		if got := strings.TrimSpace(e.Run("inspect", "-f", "{{.State.ExitCode}}", "cc")); got != "143" {
			t.Errorf("ended with %s after %v", got, time.Since(begin))
			break
		}
		e.Run("rm", "cc")
	}
	e.Audit()
}
