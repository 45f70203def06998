#!/usr/bin/env bash
# The second suite: programs that people use (curl, openssl, dig, nginx) on both sides of a real gateway.
#
#   client ---- 10.1.0.0/24, fd00:1::/64 ---- gateway ---- 203.0.113.0/24, 2001:db8::/64 ---- server (nginx)
#
#   tests/clients/run.sh [path of tidegate]     needs: curl, openssl, nginx, iproute2; root or user namespaces
#
# Everything stands in namespaces of its own and is gone afterwards. The last line counts what passed and failed.
set -u
[ $# = 0 ] || set -- "$(readlink -f "$1")"
cd "$(dirname "$0")"
. ./lab.sh
enter "$0" "${1:-}" curl openssl nginx ip unshare
tidegate=$1

# what the client saw: pass, or how it was refused
http() { # name address
  local url="http://$1/"
  on client curl -sS -m 5 -o /dev/null -w '%{http_code}' --connect-to "$1:80:[$2]:80" "$url" 2>/dev/null | verdict
}
https() {
  on client curl -sS -k -m 5 -o /dev/null -w '%{http_code}' --connect-to "$1:443:[$2]:443" "https://$1/" 2>/dev/null | verdict
}
handshake() {
  if on client timeout 5 openssl s_client -connect "[$2]:443" -servername "$1" </dev/null 2>/dev/null |
    grep -q 'BEGIN CERTIFICATE'; then echo pass; else echo block; fi
}
nameless() {
  if on client timeout 5 openssl s_client -connect "[$2]:443" -noservername </dev/null 2>/dev/null |
    grep -q 'BEGIN CERTIFICATE'; then echo pass; else echo block; fi
}
verdict() { read -r code; if [ "$code" = 200 ]; then echo pass; else echo block; fi; }

lab_up
server_up
# Columns: name allowed, blocked, on no list, no name shown. Rows: address allowed, blocked.
while read -r type row_allow row_block; do
  gateway_up "$type"
  for row in "allow 10 $row_allow" "block 20 $row_block"; do
    read -r ip last cells <<<"${row//,/ }"
    cells=($cells)
    names=(allowed.example blocked.example unlisted.example)
    for family in 203.0.113. 2001:db8::; do
      to=$family$last
      for cell in 0 1 2; do
        check "$type, ip $ip, ${names[cell]}, curl http to $to" "${cells[cell]}" "$(http "${names[cell]}" "$to")"
        check "$type, ip $ip, ${names[cell]}, curl https to $to" "${cells[cell]}" "$(https "${names[cell]}" "$to")"
        check "$type, ip $ip, ${names[cell]}, openssl to $to" "${cells[cell]}" "$(handshake "${names[cell]}" "$to")"
      done
      check "$type, ip $ip, no name, openssl to $to" "${cells[3]}" "$(nameless - "$to")"
    done
  done
  gateway_down
done <<'MATRIX'
prefer-ip      pass,pass,pass,pass    block,block,block,block
prefer-domain  pass,block,pass,pass   pass,block,pass,block
prefer-both    pass,block,pass,pass   block,block,block,block
explicit       pass,block,pass,pass   pass,block,block,block
MATRIX

finish
