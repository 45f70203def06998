#!/usr/bin/env bash
# By hand, not in CI (Chromium is large): a browser that is made to use QUIC loads a page through a real gateway, and
# shows a blocked one as blocked at once.
#
#   client (chromium) ---- gateway ---- server: HTTP/3 by aioquic and HTTPS by nginx, at 203.0.113.10
#
#   tests/clients/browser.sh [path of tidegate]     needs: chromium, a python3 with aioquic (or PYTHON), nginx, openssl, dig
#
# Everything stands in namespaces of its own and is gone afterwards. The last line counts what passed and failed.
set -u
[ $# = 0 ] || set -- "$(readlink -f "$1")"
cd "$(dirname "$0")"
. ./lab.sh
export PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import aioquic' || { echo "missing: aioquic"; exit 1; }
enter "$0" "${1:-}" chromium openssl nginx ip unshare
tidegate=$1

lab_up
server_up
: > "$work/http3.log"
on server "$PYTHON" http3.py serve "$work/cert.pem" "$work/key.pem" "$work/http3.log" 203.0.113.10 >"$work/http3.said" 2>&1 &
said "$work/http3.log" serves "$work/http3.said"
pin=$(openssl x509 -in "$work/cert.pem" -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64)

browse() { # url, more options: the page, within 30 s
  local url=$1; shift
  rm -rf "$work/chromium"
  on client timeout 30 env HOME="$work" chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
    --user-data-dir="$work/chromium" --no-first-run --disable-background-networking --disable-component-update --disable-sync \
    --host-resolver-rules='MAP *.example 203.0.113.10' --ignore-certificate-errors-spki-list="$pin" \
    --virtual-time-budget=20000 "$@" --dump-dom "$url" 2>"$work/chromium.said"
}
forced=--origin-to-force-quic-on=allowed.example:443,blocked.example:443

gateway_up prefer-both
check "an allowed page, by QUIC" 1 "$(browse https://allowed.example/ $forced | grep -c 'served by http/3')"
check "it came by HTTP/3" 1 "$(grep -c 'request allowed.example' "$work/http3.log" | sed 's/^[1-9].*/1/')"
check "the record says QUIC" 1 "$(grep -c '"type":"QUIC".*"domain":"allowed.example".*"verdict":"allow"' "$work/records" | sed 's/^[1-9].*/1/')"
check "an allowed page, by TCP" 1 "$(browse https://allowed.example/ | grep -c served)"
for how in "$forced" --disable-quic; do
  begun=$(date +%s%N)
  page=$(browse https://blocked.example/ "$how")
  took=$((($(date +%s%N) - begun) / 1000000))
  check "a blocked page is not served ($how)" 0 "$(grep -c served <<<"$page")"
  error=$(grep -oE 'Page load failed: net::ERR_[A-Z_]+' "$work/chromium.said")
  check "the browser says so ($how)" 1 "$(grep -c . <<<"$error")"
  check "and not by a time-out ($how)" yes "$([ $took -lt 10000 ] && echo yes || echo "$took ms")"
  echo "a blocked page ($how): $error, with the browser's start $took ms"
done
check "blocked names that reached the servers" 0 "$(cat "$work/http3.log" "$work/access.log" | grep -c blocked)"
check "the blocked page was refused by QUIC" 1 "$(grep -c '"type":"QUIC".*"domain":"blocked.example".*"verdict":"block"' "$work/records" | sed 's/^[1-9].*/1/')"
[ -z "${TIDEGATE_KEEP:-}" ] || cp -r "$work" "$TIDEGATE_KEEP"
gateway_down
finish
