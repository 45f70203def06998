#!/usr/bin/env bash
# The second suite, tidegate exec: programs that people use, enclosed, against servers of a pretend host.
#
#   tests/clients/exec.sh [path of tidegate]     needs: curl, git, openssl, python3 with venv, iproute2; root or
#   user namespaces. With root and openssh-server git over ssh too; apt, cargo, node, npm and chromium where
#   they are, and HTTP/3 with PYTHON, a python3 with aioquic.
#
# The host is a namespace with a resolver at 127.0.0.53 and two servers: allowed.example (198.51.100.1, 2001:db8:a::1)
# and other.example (198.51.100.2, 2001:db8:a::2). As root everything runs once more as an ordinary user.
set -u
[ $# = 0 ] || set -- "$(readlink -f "$1")"
cd "$(dirname "$0")"
if [ -z "${TIDEGATE_INSIDE:-}" ]; then
  for program in curl git openssl python3 ip unshare; do
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
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=allowed.example \
    -addext subjectAltName=DNS:allowed.example -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
  chmod 644 "$work/cert.pem"
  export RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
  export GIT_SSL_CAINFO=$work/cert.pem REQUESTS_CA_BUNDLE=$work/cert.pem PIP_CERT=$work/cert.pem
  python3 packages.py "$work/www"
  "$python" -m venv "$work/venv"
  python3 host.py "$work/www" "$work/heard" "$work/cert.pem" "$work/key.pem" &
  host=$!
  ssh_up
  local i
  if "${PYTHON:-no}" -c 'import aioquic' 2>/dev/null; then
    "$PYTHON" http3.py serve "$work/cert.pem" "$work/key.pem" "$work/http3" \
      198.51.100.{1,2} 2001:db8:a::{1,2} >/dev/null 2>&1 &
    http3=$!
    for i in $(seq 100); do grep -qs serves "$work/http3" && break; sleep 0.1; done
  fi
  for i in $(seq 100); do [ -e "$work/heard" ] && return; sleep 0.1; done
  echo "the host does not start"; exit 1
}

# Who logs in is root, with the key that the programs of the suite have. A file that ssh_config includes stands for those
# of distributions: ssh refuses files whose owner it does not know.
ssh_up() {
  ssh=
  if [ "$IS_ROOT" != 0 ] || ! command -v sshd >/dev/null; then
    echo "not tried, for want of root or sshd: git over ssh"
    return
  fi
  mkdir -p /run/sshd
  mount -t tmpfs none /etc/ssh/ssh_config.d && echo 'Host *' >/etc/ssh/ssh_config.d/20-some.conf
  ssh-keygen -q -t ed25519 -N '' -f "$work/host" && ssh-keygen -q -t ed25519 -N '' -f "$work/id"
  printf '%s\n' "HostKey $work/host" "AuthorizedKeysFile $work/id.pub" 'ListenAddress 198.51.100.1' \
    'ListenAddress 2001:db8:a::1' 'PermitRootLogin yes' 'StrictModes no' 'UsePAM no' 'PidFile none' >"$work/sshd_config"
  "$(command -v sshd)" -D -f "$work/sshd_config" 2>"$work/sshd" &
  ssh=$!
}

# What is installed where, and by whom it may be run, differs: a program that is missing is named, and not counted.
try() { # program, what, expected, command...
  local program=$1 what=$2 expected=$3
  shift 3
  if "${user[@]}" "$program" --version >/dev/null 2>&1; then
    check "$who, $what" "$expected" "$("$@")"
  else
    echo "not tried as $who, for want of $program: $what"
  fi
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

  closed git clone -q https://allowed.example/repo.git "$home/secure"
  check "$who, git clone over https" "0 one" "$? $(git -c safe.directory='*' -C "$home/secure" log --format=%s)"
  if [ -n "$ssh" ]; then
    cp "$work/id" "$home/id" && chown "$who" "$home/id"
    closed git -c core.sshCommand="ssh -i $home/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR" \
      clone -q "ssh://root@allowed.example$work/www/repo.git" "$home/ssh"
    check "$who, git clone over ssh" "0 one" "$? $(git -c safe.directory='*' -C "$home/ssh" log --format=%s)"
  fi
  closed git clone -q http://allowed.example/repo.git "$home/repo"
  check "$who, git clone" "0 one" "$? $(git -c safe.directory='*' -C "$home/repo" log --format=%s)"
  closed git clone -q http://other.example/repo.git "$home/none"
  check "$who, git clone of an unlisted name" 128 $?
  check "$who, python" served "$(closed "$python" -c \
    'import urllib.request; print(urllib.request.urlopen("http://allowed.example/").read().decode().strip())')"

  try "$work/venv/bin/pip" "pip install" "from a package" pip_install
  try cargo "cargo fetch" "one v1.0.0" cargo_fetch
  try npm "npm install" "1.0.0" npm_install
  try node "node" served closed node -e 'fetch("http://allowed.example/").then(r => r.text()).then(t => console.log(t.trim()))'
  # Root of a user namespace has no user _apt to become.
  [ "$IS_ROOT" != 0 ] || try apt-get "apt update, and what it then knows" one apt_update
  [ "$who" = root ] || try chromium "a browser, in its own sandbox" served browse

  if [ -n "${http3:-}" ] && [ "$who" = root ]; then
    try "$PYTHON" "HTTP/3 of an allowed name" "pass pass" quic allowed.example 198.51.100.1 2001:db8:a::1
    try "$PYTHON" "HTTP/3 of another name" "block block" quic other.example 198.51.100.1 2001:db8:a::1
    try "$PYTHON" "HTTP/3 of an allowed name at another's address" "block block" \
      quic allowed.example 198.51.100.2 2001:db8:a::2
  fi
  # Root may write any list.
  check "$who, a list that changes is taken, unless the command might have written it" \
    "$([ "$who" = root ] || echo served)" "$(list_changes)"

  exec_as -- curl -sS -o /dev/null http://other.example/
  check "$who, the table" "tcp/80" "$(awk '$1 == "other.example" { print $2 }' "$work/errors")"
  : >"$work/heard"

  exec_as --quiet -- sh -c '(setsid sleep 600 >/dev/null 2>&1 &); kill -USR1 $$'
  check "$who, a signal is the status" 138 $?
  check "$who, a signal to its group stays inside" "" \
    "$("${user[@]}" setsid sh -c 'trap "echo signalled" USR1; "$@"' sh "$tidegate" exec --quiet -- sh -c 'kill -USR1 0' 2>/dev/null)"
  for attempt in 'umount -l /etc/resolv.conf' 'umount -l /proc' 'umount -l /run/user' 'mount --bind / /mnt' 'mount -t sysfs none /mnt'; do
    exec_as --quiet -- unshare -Urm $attempt
    check "$who, in a user namespace of its own, $attempt" no "$([ $? = 0 ] || echo no)"
  done
  check "$who, no daemon is left" "" "$(pgrep -f 'sleep 600')"
  check "$who, nothing of tidegate is left" "" "$(pgrep -f "$tidegate exec")"

  check "$who, job control in a terminal" "" "$("${user[@]}" "$python" terminal.py "$tidegate" 2>&1)"
}

quic() { # name, addresses
  local name=$1 address said=()
  shift
  for address; do said+=("$(closed "$PYTHON" http3.py get "$name" "$address" 1000 | cut -d' ' -f2)"); done
  echo "${said[*]}"
}

list_changes() {
  mkdir -p "$work/policy" && rm -f "$home/begun"
  cat >"$work/policy/tidegate.toml" <<'CONF'
name = "e"
[[list]]
name = "names"
verdict = "allow"
file = "names"
[[policy]]
name = "out"
default = "block"
lists = ["names"]
[[network]]
name = "command"
ips = [{ ip = "10.0.0.0", maskbits = 8 }]
outbound = { policy = "out", drop = "tcp-reset" }
[network.inspection]
type = "explicit"
[network.dns]
unlisted = "block"
CONF
  echo allowed.example >"$work/policy/names"
  exec_as --quiet --config "$work/policy/tidegate.toml" -- sh -c "touch $home/begun
    for i in \$(seq 30); do curl -4 -s -m 9 http://other.example/ && exit; sleep 0.2; done" &
  local i; for i in $(seq 100); do [ -e "$home/begun" ] && break; sleep 0.1; done
  echo other.example >>"$work/policy/names"
  wait $!
}

pip_install() {
  closed "$work/venv/bin/pip" install -q --disable-pip-version-check --no-cache-dir --index-url https://allowed.example/simple/ \
    --target "$home/pip" one && cat "$home/pip/one.py"
}

cargo_fetch() {
  mkdir -p "$home/crate/src" && touch "$home/crate/src/lib.rs" && chmod -R a+rwX "$home/crate"
  printf '%s\n' '[package]' 'name = "none"' '[dependencies]' 'one = { version = "1", registry = "own" }' >"$home/crate/Cargo.toml"
  CARGO_HOME=$home/cargo CARGO_REGISTRIES_OWN_INDEX=sparse+http://allowed.example/index/ \
    closed cargo fetch -q --manifest-path "$home/crate/Cargo.toml"
  CARGO_HOME=$home/cargo CARGO_REGISTRIES_OWN_INDEX=sparse+http://allowed.example/index/ \
    "${user[@]}" cargo tree -q --offline --manifest-path "$home/crate/Cargo.toml" 2>&1 | grep -o 'one v1.0.0'
}

npm_install() {
  closed npm install --silent --no-audit --no-fund --no-update-notifier --cache "$home/npm-cache" --prefix "$home/npm" \
    --registry http://allowed.example/npm/ one >/dev/null
  sed -n 's/.*"version": *"\([^"]*\)".*/\1/p' "$home/npm/node_modules/one/package.json"
}

# Root's apt fetches as the user _apt.
apt_update() {
  mkdir -p "$home/apt/lists/partial" "$home/apt/cache/archives/partial" && chmod -R a+rwX "$home/apt"
  [ "$who" != root ] || chown -R _apt "$home/apt"
  echo 'deb [trusted=yes] http://allowed.example/apt ./' >"$home/apt/sources.list"
  local options=(-o Dir::State="$home/apt" -o Dir::State::lists="$home/apt/lists" -o Dir::Cache="$home/apt/cache"
    -o Dir::Etc::sourcelist="$home/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User=_apt)
  closed apt-get -q "${options[@]}" update >/dev/null
  "${user[@]}" apt-cache "${options[@]}" pkgnames one
}

browse() {
  closed chromium --headless --disable-gpu --user-data-dir="$home/chromium" --dump-dom http://allowed.example/ |
    grep -o served
}

host_up
suite env
[ "$IS_ROOT" != 0 ] || suite setpriv --reuid daemon --regid daemon --clear-groups
[ -z "${http3:-}" ] || check "hellos of another name that the server had" 0 "$(grep -c 'hello other' "$work/http3")"
kill $host $ssh ${http3:-}
echo "$passed passed, $failed failed"
[ $failed = 0 ]
