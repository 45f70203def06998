#!/usr/bin/env bash
# The second suite, QUIC: HTTP/3 requests to completion through a real gateway, by aioquic on both sides.
#
#   client ---- gateway ---- server: 203.0.113.10, 2001:db8::10; .12 and ::12 ask for a Retry first
#
#   tests/clients/quic.sh [path of tidegate]     needs: a python3 with aioquic (or PYTHON), openssl, iproute2
#
# Everything stands in namespaces of its own and is gone afterwards. The last line counts what passed and failed.
set -u
[ $# = 0 ] || set -- "$(readlink -f "$1")"
cd "$(dirname "$0")"
. ./lab.sh
export PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import aioquic' || { echo "missing: aioquic"; exit 1; }
enter "$0" "${1:-}" openssl ip unshare
tidegate=$1

lab_up
on server ip addr add 203.0.113.12/24 dev to-gateway
on server ip addr add 2001:db8::12/64 dev to-gateway nodad
certificate
: > "$work/http3.log"
on server "$PYTHON" http3.py serve "$work/cert.pem" "$work/key.pem" "$work/http3.log" \
  203.0.113.10 2001:db8::10 203.0.113.12 2001:db8::12 203.0.113.20 2001:db8::20 >"$work/http3.said" 2>&1 &
said "$work/http3.log" serves "$work/http3.said"

get() { on client "$PYTHON" http3.py get "$@" 2>>"$work/client.said" | cut -d' ' -f2; }
seconds() { on client "$PYTHON" http3.py get "$@" 2>/dev/null | cut -d' ' -f1; }
came() { grep -c "$1" "$work/http3.log"; }

# Named and unnamed: what a client of another name meets at an address that is blocked or not.
gateway_up prefer-both
for family in 203.0.113. 2001:db8::; do
  for version in 1 2; do
    check "allowed, version $version, $family" pass "$(get allowed.example ${family}10 1000 $version)"
    check "allowed behind a Retry, version $version, $family" pass "$(get allowed.example ${family}12 1000 $version)"
    before=$(came 'blocked.example')
    check "blocked, version $version, $family" block "$(get blocked.example ${family}10 1000 $version)"
    check "blocked behind a Retry, version $version, $family" block "$(get BLOCKED.Example ${family}12 1000 $version)"
    check "what reached the server of the blocked name, version $version, $family" 0 "$(($(came 'blocked.example') - before))"
  done
  check "a megabyte, $family" pass "$(get allowed.example ${family}10 1000000)"
  check "fifty requests at once, $family" pass "$(get allowed.example ${family}10 10000 1 50)"
  check "a blocked address, $family" block "$(get allowed.example ${family}20 1000)"
done
check "blocked names that reached the server" 0 "$(grep -ci 'blocked' "$work/http3.log")"
check "no hello of the blocked address" 0 "$(grep -c '"verdict":"allow".*203.0.113.20' "$work/records")"
gateway_down
check "without the gateway's policy the name would be served" pass "$(get blocked.example 203.0.113.10 1000)"
finish
