#!/bin/sh
# test.sh [go test flags and packages]: all tests, each package isolated, with a
# summary.
# A package that fails is run a second time; one that then passes is reported
# as flaky, and the run goes on. RETRY=0 turns that off.
set -eu
cd "$(dirname "$0")/../.."
export CGO_ENABLED=0
[ $# -gt 0 ] || set -- ./...
go build -o bin/dev/testsum ./scripts/dev/testsum
go vet "$@"
log=$(mktemp /var/tmp/machine-test-log.XXXXXX)
GOTMPDIR=$(mktemp -d /var/tmp/machine-build.XXXXXX) # not in /tmp, which is hidden from the tests
export GOTMPDIR
trap 'rm -rf "$log" "$GOTMPDIR"' EXIT
run() { go test -exec "$PWD/scripts/dev/isolated.sh" -json -p 2 -timeout 15m "$@" >"$log" || true; }
run -count=1 "$@"
if bin/dev/testsum <"$log"; then
	exit 0
fi
[ "${RETRY:-1}" = 1 ] || exit 1
failed=$(grep -o '"Action":"fail","Package":"[^"]*","Elapsed"' "$log" | sed 's/.*Package":"//; s/".*//' | sort -u)
[ -n "$failed" ] || exit 1
echo "once more, to tell what is flaky from what is broken:" $failed
# shellcheck disable=SC2086
run -count=1 $failed
echo "second run:"
bin/dev/testsum <"$log" || exit 1
echo "flaky:" $failed
