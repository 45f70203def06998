#!/usr/bin/env bash
# kill -9 of a gateway under load, many times: nothing leaks, and each start finds its rules.
#
#   tests/soak/crash.sh [TIMES]       default 100. Needs nothing but Rust; with nft it compares the rules as well.
set -eu
cd "$(dirname "$0")/../.."
export TIDEGATE_CRASHES=${1:-100}
export TIDEGATE_TEST_DEADLINE=$((TIDEGATE_CRASHES * 10 + 300))
exec cargo test --release --test it -- --exact crash::nothing_leaks_at_any_kill_and_each_start_finds_its_rules --nocapture
