#!/usr/bin/env bash
# The second suite, tidegate exec: programs that people use, enclosed, against servers of a pretend host.
#
#   tests/clients/exec.sh [path of tidegate]     needs: curl, git, python3, iproute2; root or user namespaces
#
# The host is a namespace with a resolver at 127.0.0.53 and two servers: allowed.example (198.51.100.1, 2001:db8:a::1)
# and other.example (198.51.100.2, 2001:db8:a::2). As root everything runs once more as an ordinary user.
set -u
[ $# = 0 ] || set -- "$(readlink -f "$1")"
cd "$(dirname "$0")"
if [ -z "${TIDEGATE_INSIDE:-}" ]; then
  for program in curl git python3 ip unshare; do
    PATH=$PATH:/usr/sbin:/sbin command -v $program >/dev/null || { echo "missing: $program"; exit 1; }
  done
  user=(); [ "$(id -u)" = 0 ] || user=(--user --map-root-user)
  program=${1:-$(readlink -f ../../target/debug/tidegate)}
  TIDEGATE_INSIDE=1 IS_ROOT=$(id -u) exec unshare "${user[@]}" --net --mount --pid --fork --kill-child --mount-proc \
    ./exec.sh "$program"
fi
PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d) passed=0 failed=0
trap 'rm -rf "$work"' EXIT
# Where an ordinary user may run it.
cp "$1" "$work/tidegate"
chmod 755 "$work" "$work/tidegate"
tidegate=$work/tidegate
# One that every user has, where there is a choice.
python=$(PATH=/usr/bin:$PATH command -v python3)

check() { # what, expected, seen
  if [ "$2" = "$3" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED $1: expected $2, saw $3"; fi
}

host_up() {
  ip link set lo up
  ip link add out type veth peer name far && ip link set out up && ip link set far up
  for last in 1 2; do
    ip addr add 198.51.100.$last/32 dev lo
    ip addr add 2001:db8:a::$last/128 dev lo nodad
  done
  ip addr add 192.0.2.1/24 dev out && ip addr add 2001:db8:f::1/64 dev out nodad
  ip route add default dev out && ip -6 route add default dev out
  echo nameserver 127.0.0.53 >"$work/resolv.conf"
  chmod 644 "$work/resolv.conf"
  mount --bind "$work/resolv.conf" "$(readlink -f /etc/resolv.conf)"
  mkdir -p "$work/www"
  (cd "$work/www" && echo served >index.html && git init -q --bare repo.git && git clone -q repo.git "$work/clone" &&
    cd "$work/clone" && git -c user.name=x -c user.email=x@x commit -q --allow-empty -m one &&
    git push -q origin HEAD && cd "$work/www/repo.git" && git update-server-info) 2>/dev/null
  chmod -R a+rX "$work/www"
  python3 host.py "$work/www" "$work/heard" &
  host=$!
  local i; for i in $(seq 100); do [ -e "$work/heard" ] && return; sleep 0.1; done
  echo "the host does not start"; exit 1
}

suite() { # how to become the user
  local user=("$@") who home=$work/home-$#
  mkdir -p "$home" && chmod 777 "$home"
  who=$("${user[@]}" id -un)
  exec_as() { "${user[@]}" env HOME="$home" "$tidegate" exec "$@" </dev/null 2>"$work/errors"; }
  closed() { exec_as --quiet --allow allowed.example -- "$@"; }

  check "$who, id" "$who" "$(exec_as --quiet -- id -un)"
  for family in -4 -6; do
    check "$who, curl $family" served "$(closed curl $family -sS -m 9 http://allowed.example/)"
    check "$who, curl $family on another port" served "$(closed curl $family -sS -m 9 http://allowed.example:9000/)"
    closed curl $family -sS -m 9 http://other.example/ >/dev/null
    check "$who, curl $family to an unlisted name: could not resolve" 6 $?
  done
  closed curl -sS -m 9 http://198.51.100.2/ >/dev/null
  check "$who, curl to an unlisted address: reset" 56 $?
  closed curl -sS -m 9 --connect-to ::198.51.100.2: http://allowed.example/ >/dev/null
  check "$who, curl with an allowed name to another's address: reset" 56 $?
  check "$who, nothing of it was heard" "" "$(grep 198.51.100.2 "$work/heard")"

  closed git clone -q http://allowed.example/repo.git "$home/repo"
  check "$who, git clone" "0 one" "$? $(git -c safe.directory='*' -C "$home/repo" log --format=%s)"
  closed git clone -q http://other.example/repo.git "$home/none"
  check "$who, git clone of an unlisted name" 128 $?
  check "$who, python" served "$(closed "$python" -c \
    'import urllib.request; print(urllib.request.urlopen("http://allowed.example/").read().decode().strip())')"

  exec_as -- curl -sS -o /dev/null http://other.example/
  check "$who, the table" "tcp/80" "$(awk '$1 == "other.example" { print $2 }' "$work/errors")"
  : >"$work/heard"

  exec_as --quiet -- sh -c '(setsid sleep 600 >/dev/null 2>&1 &); kill -USR1 $$'
  check "$who, a signal is the status" 138 $?
  check "$who, no daemon is left" "" "$(pgrep -f 'sleep 600')"
  check "$who, nothing of tidegate is left" "" "$(pgrep -f "$tidegate exec")"

  check "$who, job control in a terminal" "" "$("${user[@]}" "$python" terminal.py "$tidegate" 2>&1)"
}

host_up
suite env
[ "$IS_ROOT" != 0 ] || suite setpriv --reuid 65534 --regid 65534 --clear-groups
kill $host
echo "$passed passed, $failed failed"
[ $failed = 0 ]
