package registry

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
	"machine/agent/oci"
	"machine/agent/registry/registrytest"
)

// A foreign layer comes from its URLs when the registry has none, whole or
// from where it broke off, and nobody there hears a credential.
func TestS32ForeignLayers(t *testing.T) {
	r := registrytest.New(t, false)
	r.Token = "tok"
	const data = "bytes that only their maker may hand out"
	asked := 0
	other := registrytest.New(t, false)
	other.SetFault(func(w http.ResponseWriter, q *http.Request) bool {
		for _, h := range []string{"Authorization", "Cookie", "X-Registry-Auth"} {
			if q.Header.Get(h) != "" {
				t.Errorf("the other host heard %s %q", h, q.Header.Get(h))
			}
		}
		asked++
		http.ServeContent(w, q, "layer", time.Time{}, strings.NewReader(data))
		return true
	})
	d := v1.Descriptor{MediaType: oci.DockerForeignLayer, Digest: digest.FromString(data), Size: int64(len(data))}
	c := client(t, Options{})
	get := func(off int64, urls ...string) (string, error) {
		d.URLs = urls
		rd, err := c.Blob(bg, r.Host+"/a/b", d, off, user)
		if err != nil {
			return "", err
		}
		defer rd.Close()
		b, err := io.ReadAll(rd)
		return string(b), err
	}
	good := "http://" + other.Host + "/some/layer"
	for _, off := range []int64{0, 6} {
		if got, err := get(off, "ftp://x/y", "http://canary@"+other.Host+"/", good); err != nil || got != data[off:] {
			t.Errorf("from %d: %q, %v", off, got, err)
		}
	}
	if asked != 2 {
		t.Errorf("the place was asked %d times", asked)
	}
	if _, err := get(0); !fault.Is(err, fault.NotFound) {
		t.Errorf("without a place: %v", err)
	}
	if _, err := get(0, "http://192.0.2.1/x"); !fault.Is(err, fault.Forbidden) {
		t.Errorf("plain HTTP to a host that is not listed: %v", err)
	}
	if _, err := get(0, "x", "x", "x", "x", good); !fault.Is(err, fault.Invalid) {
		t.Errorf("the fifth place: %v", err)
	}
	// What the registry has is not asked for elsewhere.
	r.Blobs[d.Digest] = []byte(data)
	if got, err := get(0, good); err != nil || got != data || asked != 2 {
		t.Errorf("%q, %v, asked %d times", got, err, asked)
	}
}
