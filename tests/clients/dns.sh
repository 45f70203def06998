#!/usr/bin/env bash
# The second suite, DNS: dig, kdig and the C library's resolver ask real servers through a real gateway.
#
#   client ---- 10.1.0.0/24, fd00:1::/64 ---- gateway ---- 203.0.113.0/24, 2001:db8::/64 ---- nsd      .30, ::30
#                                                                                             unbound  .31, ::31
#                                                                                             dnsmasq  .32, ::32
#
#   tests/clients/dns.sh [path of tidegate]     needs: dig, kdig, nsd, unbound, dnsmasq, iproute2
#
# unbound asks nsd, which has the zone; dnsmasq is a resolver that nobody authorized, with answers of its own.
# Everything stands in namespaces of its own and is gone afterwards. The last line counts what passed and failed.
set -u
[ $# = 0 ] || set -- "$(readlink -f "$1")"
cd "$(dirname "$0")"
. ./lab.sh
enter "$0" "${1:-}" dig kdig nsd unbound dnsmasq ip unshare
tidegate=$1

lab_up
for last in 30 31 32; do
  on server ip addr add 203.0.113.$last/24 dev to-gateway
  on server ip addr add 2001:db8::$last/64 dev to-gateway nodad
done

{
  printf '%s\n' '$ORIGIN example.' '$TTL 60' '@ SOA ns root 1 3600 600 86400 60' '@ NS ns' 'ns A 203.0.113.30' \
    'allowed A 203.0.113.10' 'allowed AAAA 2001:db8::10' 'alias CNAME allowed' 'cloak CNAME deep' \
    'deep CNAME www.blocked' 'www.blocked A 203.0.113.20' 'blocked A 203.0.113.20' \
    'unknown TYPE65280 \# 4 01020304'
  for n in $(seq 60); do echo "big TXT \"$(printf 'x%.0s' $(seq 200))$n\""; done
} > "$work/example.zone"
cat > "$work/nsd.conf" <<CONF
server:
  ip-address: 203.0.113.30
  ip-address: 2001:db8::30
  username: ""
  pidfile: $work/nsd.pid
  database: ""
  xfrdfile: $work/xfrd
  zonelistfile: $work/zones
  xfrdir: $work
remote-control:
  control-enable: no
zone:
  name: example
  zonefile: $work/example.zone
CONF
cat > "$work/unbound.conf" <<CONF
server:
  interface: 203.0.113.31
  interface: 2001:db8::31
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  username: ""
  chroot: ""
  directory: $work
  pidfile: $work/unbound.pid
  use-syslog: no
  logfile: $work/unbound.log
  log-queries: yes
  module-config: iterator
  do-not-query-localhost: no
remote-control:
  control-enable: no
stub-zone:
  name: example
  stub-addr: 203.0.113.30
CONF
on server nsd -d -c "$work/nsd.conf" >"$work/nsd.said" 2>&1 &
on server unbound -d -c "$work/unbound.conf" >"$work/unbound.said" 2>&1 &
on server dnsmasq -k -C /dev/null -R -h -u root -g root --pid-file= --bind-interfaces -a 203.0.113.32 -a 2001:db8::32 \
  --address=/example/203.0.113.66 --log-queries --log-facility="$work/dnsmasq.log" >"$work/dnsmasq.said" 2>&1 &
printf '%s\n' "nsd-53 dns 203.0.113.30 53 -" "unbound-53 dns 203.0.113.31 53 -" "dnsmasq-53 dns 203.0.113.32 53 -" > "$work/servers"
ready "$work/servers"

ask() { on client dig +short +tries=1 +time=3 "$@" 2>/dev/null | tr '\n' ' ' | sed 's/ $//'; }
full() { on client dig +tries=1 +time=3 "$@" 2>/dev/null; }
asked() { grep -c " $1" "$work/unbound.log"; }

gateway_with() { # lines of [network.dns]
  sed '/TYPE/d' dns.toml > "$work/dns.toml"
  printf '%s\n' "$@" >> "$work/dns.toml"
  configuration=$work/dns.toml
  gateway_up dns
}

gateway_with 'authorized_resolvers = ["203.0.113.31", "2001:db8::31"]' 'answer_ips = ["203.0.113.99", "2001:db8::99"]'
for resolver in 203.0.113.31 2001:db8::31; do
  for way in +notcp +tcp; do
    check "allowed A by $resolver $way" 203.0.113.10 "$(ask @$resolver $way allowed.example A)"
    check "allowed AAAA by $resolver $way" 2001:db8::10 "$(ask @$resolver $way allowed.example AAAA)"
    check "an alias by $resolver $way" "allowed.example. 203.0.113.10" "$(ask @$resolver $way alias.example A)"
    check "blocked A by $resolver $way" 203.0.113.99 "$(ask @$resolver $way blocked.example A)"
    check "blocked AAAA by $resolver $way" 2001:db8::99 "$(ask @$resolver $way www.blocked.example AAAA)"
    check "a cloaked name by $resolver $way" 203.0.113.99 "$(ask @$resolver $way cloak.example A)"
    check "blocked MX by $resolver $way is NODATA" "NOERROR ANSWER: 0 AUTHORITY: 1" \
      "$(full @$resolver $way blocked.example MX | grep -oE 'NOERROR|NXDOMAIN|ANSWER: [0-9]+|AUTHORITY: [0-9]+' | xargs)"
    check "an unknown type by $resolver $way" '\# 4 01020304' "$(ask @$resolver $way unknown.example TYPE65280)"
    check "a name that is not, by $resolver $way" NXDOMAIN "$(full @$resolver $way none.example | grep -o NXDOMAIN)"
  done
  check "big by UDP is cut short, $resolver" tc "$(full @$resolver +ignore +bufsize=1232 big.example TXT | grep -oE 'flags:.* tc' | grep -o tc)"
  check "big by TCP, $resolver" 60 "$(full @$resolver big.example TXT +short +bufsize=1232 | wc -l)"
  check "no EDNS, $resolver" 0 "$(full @$resolver +noedns allowed.example | grep -c EDNS)"
  check "DO is echoed for a blocked name, $resolver" do "$(full @$resolver +dnssec blocked.example | grep -oE 'flags: do' | grep -o do)"
  check "the case is echoed, $resolver" 1 "$(full @$resolver bLoCkEd.ExAmPlE | grep -c '^bLoCkEd.ExAmPlE.*203.0.113.99')"
  check "kdig, $resolver" 203.0.113.10 "$(on client kdig +short +time=3 @$resolver allowed.example A)"
  check "kdig +tcp with cookie, $resolver" 203.0.113.99 "$(on client kdig +short +tcp +cookie @$resolver blocked.example A)"
  check "pipelined by kdig, $resolver" "203.0.113.10 203.0.113.99 203.0.113.10" \
    "$(on client kdig +short +tcp +keepopen @$resolver allowed.example blocked.example allowed.example | xargs)"
done
for resolver in 203.0.113.30 203.0.113.32 2001:db8::32; do
  for way in +notcp +tcp; do
    check "nothing from $resolver $way" "" "$(ask @$resolver $way allowed.example A | grep -v '^;')"
  done
done
check "what reached the unauthorized resolver" 0 "$(grep -c 'query' "$work/dnsmasq.log")"
check "the authorized one was asked by the client itself" 1 "$(grep -c '10.1.0.2 allowed.example. A' "$work/unbound.log" | sed 's/^[1-9].*/1/')"
check "blocked names upstream" 0 "$(grep -ciE '(10.1.0.2|fd00:1::2) [a-z.]*blocked.example' "$work/unbound.log")"

libc() { # name: what the C library's resolver finds
  on client unshare --mount sh -c "mount --bind '$work/resolv.conf' /etc/resolv.conf && getent ahosts '$1'" | awk '{print $1}' | sort -u | xargs
}
echo 'nameserver 203.0.113.31' > "$work/resolv.conf"
check "getent, allowed" "2001:db8::10 203.0.113.10" "$(libc allowed.example)"
check "getent, blocked" "2001:db8::99 203.0.113.99" "$(libc blocked.example)"
printf 'nameserver 203.0.113.32\nnameserver 2001:db8::31\n' > "$work/resolv.conf"
check "getent falls to the authorized resolver" "2001:db8::10 203.0.113.10" "$(libc allowed.example)"
gateway_down

gateway_with 'upstream = ["203.0.113.31"]' 'unlisted = "resolve"'
before=$(asked allowed.example.)
for resolver in 203.0.113.32 2001:db8::32 203.0.113.32; do
  check "by upstream whoever is asked, $resolver" 203.0.113.10 "$(ask @$resolver allowed.example A)"
done
check "cached: asked upstream" 1 "$(( $(asked allowed.example.) - before ))"
check "blocked without answer IPs" NXDOMAIN "$(full @203.0.113.31 blocked.example | grep -o NXDOMAIN)"
check "what reached the resolver that was asked" 0 "$(grep -c 'query' "$work/dnsmasq.log")"
gateway_down

gateway_with 'unlisted = "block"'
check "a closed world" NXDOMAIN "$(full @203.0.113.31 allowed.example | grep -o NXDOMAIN)"
gateway_down
finish
