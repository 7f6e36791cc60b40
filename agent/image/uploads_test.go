package image

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"machine/agent/model"
	"machine/agent/registry/registrytest"
)

// TestUploadsAtOnce: no more layers are pushed at once than is allowed, and as
// many.
func TestUploadsAtOnce(t *testing.T) {
	r := registrytest.New(t, false)
	s := openAt(t, t.TempDir(), client(t))
	s.o.Uploads = 2
	var layers [][]byte
	for _, n := range []string{"a", "b", "c", "d"} {
		layers = append(layers, lay(t, n, n))
	}
	r.Image(t, "x", "1", layers...)
	pulled(t, s, r.Host+"/x:1")
	other := registrytest.New(t, false)
	if err := s.Tag(bg, r.Host+"/x:1", other.Host+"/x:1"); err != nil {
		t.Fatal(err)
	}
	var now, most atomic.Int32
	other.Fault = func(w http.ResponseWriter, q *http.Request) bool {
		if q.Method == http.MethodPatch && strings.Contains(q.URL.Path, "/uploads/") {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(50 * time.Millisecond)
			now.Add(-1)
		}
		return false
	}
	if err := s.Push(bg, other.Host+"/x:1", model.RegistryAuth{}, model.Nothing); err != nil {
		t.Fatal(err)
	}
	if most.Load() != 2 {
		t.Errorf("%d at once", most.Load())
	}
}
