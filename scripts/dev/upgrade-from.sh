#!/bin/sh
# upgrade-from.sh [REV]: tests that the agent of this tree takes over what an
# agent built from another commit of this repository runs, and the other way
# round. REV is the commit in upgrade-from.rev by default.
set -eu
cd "$(dirname "$0")/../.."
rev=${1:-$(cat scripts/dev/upgrade-from.rev)}
if ! git cat-file -e "$rev^{commit}" 2>/dev/null; then
	echo "upgrade-from: the commit $rev is not here: a shallow clone has no history; run git fetch --unshallow" >&2
	exit 1
fi
dir=$(mktemp -d /var/tmp/upgrade-from.XXXXXX)
trap 'git worktree remove --force "$dir/tree" 2>/dev/null; rm -rf "$dir"' EXIT
git worktree add --quiet --detach "$dir/tree" "$rev"
export CGO_ENABLED=0
arch=$(go env GOARCH)
(
	cd "$dir/tree"
	go build -trimpath -ldflags '-s -w' -o "agent/shim/embed/shim-$arch" ./agent/shim/main
	go build -trimpath -ldflags "-s -w -X machine/agent.GitCommit=$rev" -o bin/agent ./agent/agentd
)
mkdir "$dir/tmp"
export GOTMPDIR="$dir/tmp" UPGRADE_FROM="$dir/tree/bin/agent"
go test -exec "$PWD/scripts/dev/isolated.sh" -tags upgrade -run TestF54From -count 1 -v -timeout 10m ./acceptance/docker
