#!/usr/bin/env bash
# run.sh [SECONDS] [TARGET...]: every fuzz target for so long (60 unless told; 0 only builds), as many at a time as there
# are cores. Instrumented by the stable compiler: each edge and comparison is seen. What breaks a target is left in
# artifacts/, and what a run adds to its corpus in the folder KEEP, if one is named. SEED: runs that go the same way.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
[ $# -gt 0 ] || set -- $(basename -s .rs fuzz_targets/*.rs)

# With a target of its own, so that build scripts and macros, which run without the fuzzer, stay as they are.
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS=$(tr -s ' \n' ' ' <<<"${RUSTFLAGS:-} $coverage") cargo build --target "$host"
[ "$seconds" -gt 0 ] || exit 0

built=${CARGO_TARGET_DIR:-target}/$host/debug
mkdir -p artifacts
thrown=$(mktemp -d)
trap 'rm -rf "$thrown"' EXIT
found=${KEEP:-$thrown}

export seconds thrown found built
run() {
  mkdir -p "$found/$1"
  if "$built/$1" -seed="${SEED:-0}" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -artifact_prefix="artifacts/$1-" \
    "$found/$1" "corpus/$1" >"$thrown/$1.log" 2>&1; then
    printf '%-16s %s, %s\n' "$1" "$(tail -1 "$thrown/$1.log")" "$(grep -o 'cov: [0-9]* ' "$thrown/$1.log" | tail -1)"
  else
    tail -40 "$thrown/$1.log"
    printf '%-16s broken\n' "$1"
    return 1
  fi
}
export -f run
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -c 'run {}'
