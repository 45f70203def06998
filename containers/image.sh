#!/usr/bin/env bash
# Builds the image `tidegate` from this checkout.
#
#   containers/image.sh [podman|docker] [static binary]     without a binary: built here, which takes
#                                                           rustup target add x86_64-unknown-linux-musl, musl-tools
set -euo pipefail
engine=${1:-podman} binary=${2:-}
cd "$(dirname "$0")/.."
if [ -z "$binary" ]; then
  cargo build --release --target x86_64-unknown-linux-musl
  binary=target/x86_64-unknown-linux-musl/release/tidegate
fi
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
strip -o "$context/tidegate" "$binary"
$engine build -q -t tidegate -f containers/Dockerfile "$context"
