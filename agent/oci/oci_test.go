package oci

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
)

func TestParseRef(t *testing.T) {
	for in, want := range map[string]string{
		"busybox": "docker.io/library/busybox:latest", "a/b:c": "docker.io/a/b:c", "host:5000/x": "host:5000/x:latest", "localhost/x": "localhost/x:latest",
	} {
		if n, err := ParseRef(in); err != nil || n.String() != want {
			t.Errorf("%s: %v, %v", in, n, err)
		}
	}
	for _, bad := range []string{"", "A", "../x", "x/../y", strings.Repeat("a", 64), "x:y:z", "x@sha256:12", strings.Repeat("a/", 1000), "x\x00y", ":tag"} {
		if n, err := ParseRef(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", bad, n, err)
		}
	}
}

func TestChain(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	if Chain(nil) != "" || Chain([]digest.Digest{a}) != a || Chain([]digest.Digest{a, b}) != digest.FromString(a.String()+" "+b.String()) {
		t.Error("chains are not those of image-spec")
	}
}

func TestPlatforms(t *testing.T) {
	for in, want := range map[string]string{"linux/amd64": "linux/amd64", "linux/x86_64": "linux/amd64", "linux/arm64/v8": "linux/arm64", "linux/arm": "linux/arm/v7", "LINUX/arm/v6": "linux/arm/v6"} {
		if p, err := ParsePlatform(in); err != nil || FormatPlatform(p) != want {
			t.Errorf("%s: %v, %v", in, p, err)
		}
	}
	for _, bad := range []string{"a/b/c/d", "/", "linux/", "li nux/amd64"} {
		if _, err := ParsePlatform(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	pl := func(s string) *v1.Platform { p, _ := ParsePlatform(s); return &p }
	list := []v1.Descriptor{
		{Size: 1, Platform: pl("linux/386")}, {Size: 2, Platform: pl("linux/arm/v6")}, {Size: 3, Platform: pl("linux/arm/v7")}, {Size: 4, Platform: pl("linux/amd64")},
		{Size: 5, Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}, Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}},
	}
	for want, size := range map[string]int64{"linux/amd64": 4, "linux/arm/v7": 3, "linux/arm/v6": 2, "linux/arm/v8": 3, "linux/386": 1, "linux/arm64": 3, "windows/amd64": 0} {
		d, err := Choose(list, *pl(want))
		if size == 0 && !fault.Is(err, fault.NotFound) || d.Size != size {
			t.Errorf("%s: %+v, %v", want, d, err)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:x"},"layers":[]}`), v1.MediaTypeImageManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{}]}`), v1.MediaTypeImageIndex)
	f.Add([]byte(`null`), "")
	f.Fuzz(func(t *testing.T, b []byte, mt string) {
		m, err := ParseManifest(b, mt)
		if err == nil && m.Index {
			Choose(m.Manifests, Host())
		}
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("kind of %v", err)
		}
	})
}

func FuzzParseRef(f *testing.F) {
	f.Add("busybox")
	f.Add("host:5000/a/b:c@sha256:" + strings.Repeat("a", 64))
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseRef(s); err == nil && (strings.Contains(n.String(), "..") && strings.Contains(n.String(), "/..")) {
			t.Errorf("%q became %s", s, n)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"rootfs":{"diff_ids":["x"]},"config":{"Env":null}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var img v1.Image
		ParseConfig(b, &img)
	})
}
