#!/usr/bin/env bash
# run.sh [SECONDS] [TARGET...]: every fuzz target for so long (60 unless told), as many at a time as there are cores.
# A stable build without instrumentation: blind, but it runs everywhere. What breaks a target is left in artifacts/.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
[ $# -gt 0 ] || set -- $(basename -s .rs fuzz_targets/*.rs)
cargo build
built=${CARGO_TARGET_DIR:-target}/debug
mkdir -p artifacts
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT

# What a run adds to its corpus goes to the first folder, and is thrown away: blind, it is worth nothing.
export seconds found built
run() {
  mkdir "$found/$1"
  if "$built/$1" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -artifact_prefix="artifacts/$1-" \
    "$found/$1" "corpus/$1" >"$found/$1.log" 2>&1; then
    printf '%-16s %s\n' "$1" "$(tail -1 "$found/$1.log")"
  else
    tail -40 "$found/$1.log"
    printf '%-16s broken\n' "$1"
    return 1
  fi
}
export -f run
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -c 'run {}'
