#!/bin/sh
# isolated.sh COMMAND...: runs a command in mount, PID, network, IPC and UTS
# namespaces of its own, with an empty /run and /tmp. What tests leave behind
# ends with them, and they meet nothing that runs on this computer. Needs root.
set -eu
if [ "$(id -u)" != 0 ]; then
	exec "$@" # kernel tests skip, and say so
fi
tmp=$(mktemp -d /var/tmp/machine-test.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/tmp"
chmod 1777 "$tmp/tmp"
unshare --mount --pid --net --ipc --uts --fork --kill-child --mount-proc sh -c '
	set -e
	mount --make-rprivate /
	mount --bind "$0/tmp" /tmp
	mount -t tmpfs -o mode=755 tmpfs /run
	mkdir -p /run/sshd /run/lock
	ip link set lo up
	set +e
	"$@" # not exec: this shell is the first process and reaps orphans
	exit $?
' "$tmp" "$@"
