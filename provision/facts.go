package provision

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// facts are what the probe found on a host.
type facts map[string]string

// parseFacts reads the probe's KEY=VALUE lines; a login banner among them does
// no harm. A probe that did not come to its end is an error.
func parseFacts(out string) (facts, error) {
	f := facts{}
	for _, line := range strings.Split(out, "\n") {
		if k, v, ok := strings.Cut(strings.TrimRight(line, "\r"), "="); ok {
			f[k] = v
		}
	}
	if f["done"] != "yes" {
		return nil, fmt.Errorf("the host's shell did not run the probe; it said: %.300q", out)
	}
	return f, nil
}

func (f facts) num(key string) int64 {
	n, _ := strconv.ParseInt(f[key], 10, 64)
	return n
}

// arch returns Go's name of the processor.
func (f facts) arch() string {
	switch f["arch"] {
	case "x86_64", "amd64":
		return "amd64"
	case "aarch64", "arm64":
		return "arm64"
	}
	return ""
}

// root returns the prefix that makes a command root's.
func (f facts) root() string {
	if f["uid"] == "0" {
		return ""
	}
	return "sudo -n "
}

// check refuses hosts that cannot become machines, each with what to do.
func (f facts) check(port int, agentSize int64) error {
	if f["os"] != "Linux" {
		return fmt.Errorf("the host runs %s: machines must run Linux", f["os"])
	}
	if f.arch() == "" {
		return fmt.Errorf("the host's processor is %s: agents exist for x86_64 and aarch64", f["arch"])
	}
	if !kernelAtLeast(f["kernel"], 5, 10) {
		return fmt.Errorf("the host's kernel %s is too old: 5.10 or later is needed", f["kernel"])
	}
	switch f["sudo"] {
	case "none":
		return fmt.Errorf("the login user is not root and the host has no sudo: log in as root, or install sudo")
	case "password":
		return fmt.Errorf("sudo asks for a password on the host: allow the login user `NOPASSWD: ALL` in /etc/sudoers.d, or log in as root")
	}
	if pid := f["dockerd"]; pid != "" {
		return fmt.Errorf("the host runs Docker's own engine (dockerd, process %s): stop it with `systemctl disable --now docker.service docker.socket` and try again; its images and containers stay in /var/lib/docker", pid)
	}
	if f["port_inode"] != "" && f["agent_runs"] == "" {
		who := "another program"
		if f["port_name"] != "" {
			who = fmt.Sprintf("%s (process %s)", f["port_name"], f["port_pid"])
		}
		return fmt.Errorf("port %d of the host is taken by %s: stop it, or choose another engine port", port, who)
	}
	need := agentSize/1024 + 4096
	if free, ok := f["free_bin"]; ok && f.num("free_bin") < need {
		return fmt.Errorf("the host's disk is full: %s KiB are free for /usr/local/bin, %d are needed", free, need)
	}
	return nil
}

// skew is how far the host's clock is from ours.
func (f facts) skew(now time.Time) time.Duration {
	if f["clock"] == "" {
		return 0
	}
	return time.Unix(f.num("clock"), 0).Sub(now)
}

func kernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}
