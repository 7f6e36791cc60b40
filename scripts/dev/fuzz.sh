#!/bin/bash
# fuzz.sh [PATTERN]: runs every fuzz target whose package or name matches, for
# FUZZ_SECONDS (60) each, and prints executions, inputs that found something
# new, and seconds of processor. A crash is kept under the package's
# testdata/fuzz, and ends in failure. FUZZ_PARALLEL (2) is how many at once in
# a target. What a target writes is in memory, and inputs are made small with
# few tries: some targets are slow, and time is for new inputs.
set -eu
cd "$(dirname "$0")/../.."
export CGO_ENABLED=0
seconds=${FUZZ_SECONDS:-60}
pattern=${1:-.}
work=$(mktemp -d /var/tmp/machine-fuzz.XXXXXX)
trap 'rm -rf "$work"' EXIT
if [ -d /dev/shm ]; then
	files=$(mktemp -d /dev/shm/machine-fuzz.XXXXXX)
	export TMPDIR=$files
	trap 'rm -rf "$work" "$files"' EXIT
fi
printf '%-46s %12s %10s %8s\n' target executions new 'CPU s'
grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
	pkg=$(dirname "$file")
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "$pkg.$target" | grep -q -- "$pattern" || continue
		go test -c -fuzz "^$target\$" -o "$work/test" "$pkg" # with -fuzz: the compiler counts branches
		ok=1
		TIMEFORMAT='%U %S'
		{ time (cd "$pkg" && "$work/test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "${seconds}s" \
			-test.fuzzcachedir "$work/cache/$target" -test.parallel "${FUZZ_PARALLEL:-2}" -test.fuzzminimizetime 50x >"$work/out" 2>&1); } 2>"$work/time" || ok=
		cpu=$(awk '{printf "%.0f", $1 + $2}' "$work/time")
		execs=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' "$work/out" | tail -1)
		new=$(sed -n 's/.*new interesting: \([0-9]*\).*/\1/p' "$work/out" | tail -1)
		printf '%-46s %12s %10s %8s\n' "${pkg#./}.$target" "${execs:--}" "${new:--}" "$cpu"
		if [ -z "$ok" ]; then
			tail -40 "$work/out"
			echo "$target" >>"$work/failed"
		fi
	done
done
if [ -e "$work/failed" ]; then
	echo "failed:" $(cat "$work/failed") >&2
	exit 1
fi
