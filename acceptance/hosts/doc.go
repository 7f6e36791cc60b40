// Package hosts makes hosts for tests of the generic driver: Debian's own sshd
// in namespaces of its own, over a throw-away copy of this computer's files.
//
// A test that uses it runs in its own network, mount and PID namespaces, as
// scripts/dev/isolated.sh makes them; without root it is skipped.
package hosts
