// Package scripts holds what is run on hosts: small POSIX shell programs for
// /bin/sh of any distribution, busybox included.
package scripts

import _ "embed"

// Probe prints facts of a host as KEY=VALUE lines. It changes nothing and
// needs no root. Environment: PORT, the engine's.
//
//go:embed probe.sh
var Probe string

// Install puts an uploaded agent and a service unit in place. It is fed by
// standard input, behind the files that it uses; see provision.
//
//go:embed install.sh
var Install string
