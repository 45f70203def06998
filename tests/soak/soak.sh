#!/usr/bin/env bash
# Mixed TLS, HTTP, QUIC and DNS, allowed and blocked, with a reload every second and a hand-over every minute.
#
#   tests/soak/soak.sh [SECONDS]      default 1200; 120 is the short form. Needs nothing but Rust.
# PROFILE: empty for a debug build.
#
# Ends with an error where a flow is lost that should have lived, one arrives that is blocked, or memory or descriptors grow.
set -eu
cd "$(dirname "$0")/../.."
export TIDEGATE_SOAK=${1:-1200}
export TIDEGATE_TEST_DEADLINE=$((TIDEGATE_SOAK + 300))
profile=${PROFILE-release}
exec cargo test ${profile:+--$profile} --test it -- --exact soak::nothing_is_lost_leaks_or_grows --ignored --nocapture
