#!/usr/bin/env bash
# The second suite, failing: a gateway that is killed lets nothing of what it inspected pass, and starts again.
#
#   client (curl, openssl, dig) ---- gateway ---- server (nginx)
#
#   tests/clients/closed.sh [path of tidegate]     needs: curl, openssl, nginx, dig, iproute2
#
# Everything stands in namespaces of its own and is gone afterwards. The last line counts what passed and failed.
set -u
[ $# = 0 ] || set -- "$(readlink -f "$1")"
cd "$(dirname "$0")"
. ./lab.sh
enter "$0" "${1:-}" curl openssl nginx dig ip unshare
tidegate=$1

lab_up
server_up
# Takes down every datagram to port 443 or 53, as a server of QUIC and of DNS would see it.
on server python3 - "$work/datagrams" <<'PYTHON' &
import selectors, socket, sys
ready = selectors.DefaultSelector()
for port in (53, 443):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(("::", port))
    ready.register(s, selectors.EVENT_READ, port)
log = open(sys.argv[1], "w", buffering=1)
log.write("ready\n")
while True:
    for key, _ in ready.select():
        log.write(f"{key.data} {key.fileobj.recvfrom(9000)[1][0]}\n")
PYTHON
touch "$work/datagrams"; said "$work/datagrams" ready "$work/datagrams"

fetch() { # url address: the status, or 000
  on client curl -sk -m 2 -o /dev/null -w '%{http_code}' --connect-to "::[$2]:" "$1"
}
everything() { # expected, when
  local to
  for to in 203.0.113.10 2001:db8::10; do
    check "$2: http to $to" "$1" "$(fetch http://allowed.example/ $to)"
    check "$2: https to $to" "$1" "$(fetch https://allowed.example/ $to)"
  done
}
datagrams() { # sends some, and tells how many the server saw
  local before to
  before=$(wc -l < "$work/datagrams")
  for to in 203.0.113.10 2001:db8::10; do
    on client bash -c "for n in 1 2 3; do echo short > /dev/udp/$to/443; done" 2>/dev/null
    on client dig +tries=1 +time=1 @$to allowed.example >/dev/null 2>&1
  done
  echo $(($(wc -l < "$work/datagrams") - before))
}
hold() { # a download that the end of the gateway cuts off
  on client curl -sk -m 8 --limit-rate 1k -o /dev/null --connect-to "::[203.0.113.10]:" https://allowed.example/large
  echo $? > "$work/held"
}

gateway_up prefer-both
everything 200 "running"
hold & holder=$!
for i in $(seq 100); do on server ss -Htn state established sport = :443 | grep -q . && break; sleep 0.1; done
kill -9 $gateway; wait $gateway 2>/dev/null
: > "$work/access.log"
everything 000 "killed"
check "killed: datagrams to the server" 0 "$(datagrams)"
check "killed: requests at the server" 0 "$(grep -c . "$work/access.log")"
check "killed: dns by TCP" 0 "$(on client dig +tcp +tries=1 +time=1 @203.0.113.10 allowed.example 2>/dev/null | grep -c NOERROR)"
wait $holder
check "killed: a flow of before ends" no "$([ "$(cat "$work/held")" = 0 ] && echo yes || echo no)"

gateway_up prefer-both
everything 200 "started again"
check "started again: blocked is blocked" 000 "$(fetch https://blocked.example/ 203.0.113.10)"
gateway_down
everything 200 "ended in order"
finish
