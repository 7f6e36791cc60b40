package agent

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func parse(t *testing.T, file string, args ...string) (*Config, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return ParseArgs(append([]string{"--config-file", name}, args...), io.Discard)
}

// A daemon.json as the field has them, key by key as dockerd reads it.
func TestDaemonJSON(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "seccomp.json")
	os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`), 0o600)
	c, err := parse(t, `{
		"registry-mirrors": ["https://mirror.example.com", "http://10.0.0.1:5000/hub/"],
		"insecure-registries": ["10.0.0.0/8", "registry.local:5000"],
		"proxies": {"http-proxy": "http://proxy:3128", "https-proxy": "http://proxy:3129", "no-proxy": "localhost,.local"},
		"log-driver": "local", "log-opts": {"max-size": "10m", "max-file": "3"},
		"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 4096}},
		"default-address-pools": [{"base": "10.10.0.0/16", "size": 24}],
		"seccomp-profile": "`+profile+`", "default-ipc-mode": "shareable", "default-cgroupns-mode": "private",
		"hosts": ["unix:///x"], "mtu": 1400, "live-restore": true, "storage-driver": "overlay2", "group": "users",
		"exec-opts": ["native.cgroupdriver=systemd"], "features": {"buildkit": true}
	}`)
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string][2]string{
		"mirrors":  {strings.Join(c.RegistryMirrors, " "), "https://mirror.example.com/ http://10.0.0.1:5000/hub/"},
		"insecure": {strings.Join(c.InsecureRegistries, " "), "10.0.0.0/8 registry.local:5000"},
		"proxies":  {c.HTTPProxy + " " + c.HTTPSProxy + " " + c.NoProxy, "http://proxy:3128 http://proxy:3129 localhost,.local"},
		"log":      {c.LogDriver + c.LogOpts["max-size"] + c.LogOpts["max-file"], "local10m3"},
		"pool":     {c.Bridge.Pools[0].Base.String(), "10.10.0.0/16"},
		"seccomp":  {c.SeccompProfile + c.Seccomp, profile + `{"defaultAction":"SCMP_ACT_ALLOW"}`},
		"modes":    {c.IPCMode + c.CgroupnsMode + c.SocketGroup, "shareableprivateusers"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: got %q, want %q", what, got[0], got[1])
		}
	}
	if u := c.Ulimits; len(u) != 1 || u[0].Name != "nofile" || u[0].Soft != 1024 || u[0].Hard != 4096 {
		t.Errorf("ulimits: %v", u)
	}
}

func TestBadDaemonJSON(t *testing.T) {
	for file, want := range map[string]string{
		`{"no-such-key": 1}`:                     "don't match any configuration option: no-such-key",
		`{"proxies": {"ftp-proxy": "x"}}`:        "proxies.ftp-proxy",
		`{"seccomp-profile": "/no/such/file"}`:   "no such file",
		`{"default-ipc-mode": "host"}`:           "private or shareable",
		`{"default-cgroupns-mode": "container"}`: "private or host",
		`{"debug": true}`:                        "both as a flag and in the configuration file: debug",
		`{"storage-driver": "zfs"}`:              "not supported",
		`{"hosts": `:                             "unexpected end of JSON",
		`{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}`: "size must lie",
	} {
		if _, err := parse(t, file, "--debug"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}

// TestProxies: what the configuration names goes before the environment, and
// nobody is shown a password.
func TestProxies(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://env:1")
	t.Setenv("NO_PROXY", "localhost")
	c := Defaults()
	c.HTTPSProxy = "http://me:secret@conf:2"
	p := c.proxies()
	if p.HTTPProxy != "http://env:1" || p.HTTPSProxy != "http://me:secret@conf:2" || p.NoProxy != "localhost" {
		t.Errorf("got %+v", p)
	}
	for in, want := range map[string]string{p.HTTPSProxy: "http://xxxxx:xxxxx@conf:2", "http://env:1": "http://env:1", "": ""} {
		if got := masked(in); got != want {
			t.Errorf("%q is shown as %q", in, got)
		}
	}
}

// TestValidate: what the engine could not start with is refused when it is
// read; a registry written as a URL is taken as dockerd takes it.
func TestValidate(t *testing.T) {
	for _, bad := range []string{"--registry-mirror=mirror:5000", "--insecure-registry=host/path", "--label=x", "--nosuch"} {
		if _, err := ParseArgs([]string{"--config-file=/dev/null", bad}, io.Discard); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	c, err := ParseArgs([]string{"--config-file=/dev/null", "--validate", "--insecure-registry=http://1.2.3.4:5000"}, io.Discard)
	if err != nil || !c.Validate || c.InsecureRegistries[0] != "1.2.3.4:5000" {
		t.Errorf("got %+v, %v", c, err)
	}
}
