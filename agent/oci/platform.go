package oci

import (
	"runtime"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"machine/agent/fault"
)

// Host is the platform of this process.
func Host() v1.Platform {
	return Normalize(v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH})
}

// ParsePlatform parses "os", "arch", "os/arch" or "os/arch/variant"; what is
// left out is the host's. Empty gives the host's. Invalid for anything else.
func ParsePlatform(s string) (v1.Platform, error) {
	host := Host()
	if s == "" {
		return host, nil
	}
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if p == "" || strings.Trim(strings.ToLower(p), "abcdefghijklmnopqrstuvwxyz0123456789_-.") != "" {
			return host, fault.Invalid.Errorf("%q is an invalid component of platform %q", p, s)
		}
	}
	var p v1.Platform
	switch len(parts) {
	case 1:
		if knownOS(parts[0]) {
			p = v1.Platform{OS: parts[0], Architecture: host.Architecture}
		} else {
			p = v1.Platform{OS: host.OS, Architecture: parts[0]}
		}
	case 2:
		p = v1.Platform{OS: parts[0], Architecture: parts[1]}
	case 3:
		p = v1.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
	default:
		return host, fault.Invalid.Errorf("platform %q has more than three components", s)
	}
	return Normalize(p), nil
}

func knownOS(s string) bool {
	switch strings.ToLower(s) {
	case "linux", "windows", "darwin", "macos", "freebsd", "openbsd", "netbsd", "solaris", "plan9", "aix", "android", "dragonfly", "illumos", "js", "wasip1":
		return true
	}
	return false
}

// Normalize writes the names of a platform in their one agreed form: x86_64
// is amd64, arm64/v8 is arm64, arm is arm/v7.
func Normalize(p v1.Platform) v1.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	switch p.Architecture {
	case "i386":
		p.Architecture, p.Variant = "386", ""
	case "x86_64", "x86-64", "amd64":
		p.Architecture = "amd64"
		if p.Variant == "v1" {
			p.Variant = ""
		}
	case "aarch64", "arm64":
		p.Architecture = "arm64"
		if p.Variant == "8" || p.Variant == "v8" {
			p.Variant = ""
		}
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "arm":
		switch p.Variant {
		case "", "7":
			p.Variant = "v7"
		case "5", "6", "8":
			p.Variant = "v" + p.Variant
		}
	}
	return p
}

// FormatPlatform is "os/arch" or "os/arch/variant".
func FormatPlatform(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// rank says how well have runs on want: 0 not at all, more is better.
func rank(want, have v1.Platform) int {
	want, have = Normalize(want), Normalize(have)
	if want.OS != have.OS {
		return 0
	}
	if want.Architecture == have.Architecture {
		if want.Variant == have.Variant {
			return 100
		}
		if want.Architecture == "arm" && have.Variant < want.Variant && have.Variant >= "v5" {
			return 50 + int(have.Variant[1]-'0')
		}
		if want.Architecture == "amd64" && (have.Variant == "" || have.Variant < want.Variant) {
			return 60
		}
		if want.Architecture == "arm64" && (want.Variant == "" && have.Variant < "v9" || have.Variant == "") {
			return 60
		}
		return 0
	}
	if want.Architecture == "arm64" && have.Architecture == "arm" && have.Variant >= "v5" && have.Variant <= "v8" {
		return 10 + int(have.Variant[1]-'0')
	}
	if want.Architecture == "amd64" && have.Architecture == "386" {
		return 10
	}
	return 0
}

// Matches tells whether an image for have runs on want. An image that does
// not say what it is for matches all.
func Matches(want, have v1.Platform) bool {
	if have.OS == "" && have.Architecture == "" {
		return true
	}
	return rank(want, have) > 0
}

// Choose picks the manifest of an index for a platform: the best match, the
// first of equals. Attestations are passed over. The error is what Docker
// says, of kind NotFound.
func Choose(list []v1.Descriptor, want v1.Platform) (v1.Descriptor, error) {
	best, at := 0, -1
	for i, d := range list {
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		r := 0
		switch {
		case d.Platform == nil:
			r = 1 // says nothing: better than nothing
		case d.Platform.OS == "unknown":
		default:
			r = rank(want, *d.Platform)
		}
		if r > best {
			best, at = r, i
		}
	}
	if at < 0 {
		return v1.Descriptor{}, fault.NotFound.Errorf("no matching manifest for %s in the manifest list entries", FormatPlatform(want))
	}
	return list[at], nil
}
