#!/usr/bin/env bash
# The second suite, containers: the image, and an application beside its sidecar, in real containers.
#
#   client: the network of application and sidecar ---- gateway: forwards ---- server (nginx, dnsmasq)
#
#   tests/clients/container.sh [static binary]     needs: podman, runc, busybox (static), strip, curl, openssl, nginx,
#                                                  dnsmasq, iproute2; root
#
# No image is fetched: both hold one static program. The containers join a namespace of this script, so that podman sets
# no network up; they, their images and all namespaces are gone afterwards. The last line counts what passed and failed.
set -u
binary=$(readlink -f "${1:-$(dirname "$0")/../../target/x86_64-unknown-linux-musl/release/tidegate}")
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "missing: root, for containers with users of their own"; exit 1; }
. ./lab.sh
enter "$0" "$binary" podman runc busybox strip curl openssl nginx dnsmasq ip unshare
binary=$1
repository=$(readlink -f ../..)

# What lets podman run where limits and control groups are not those of a fresh host.
cat > "$work/containers.conf" <<CONF
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
CONF
export CONTAINERS_CONF=$work/containers.conf
podman() {
  command podman --root "$work/store" --runroot "$work/runroot" --tmpdir "$work/tmp" --storage-driver vfs "$@" \
    2>>"$work/podman.err"
}
clean() {
  podman rm -f -a -t 0 >/dev/null
  kill $(jobs -p) 2>/dev/null
  wait
  rm -rf "$work"
}
trap clean EXIT

# busybox speaks TLS as of old, and verifies nothing.
ciphers=ALL:@SECLEVEL=0
certificate() {
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=server.example -keyout "$work/key.pem" \
    -out "$work/cert.pem" 2>/dev/null
}

lab_up
server_up
: > "$work/access.log"
on server ip addr add 203.0.113.53/24 dev to-gateway
on server dnsmasq --no-daemon --no-resolv --no-hosts --log-queries --listen-address=203.0.113.53 --bind-interfaces \
  --user=root --pid-file="$work/dnsmasq.pid" --address=/allowed.example/203.0.113.10 \
  --address=/other.example/203.0.113.10 >"$work/queries" 2>&1 &
for i in $(seq 100); do grep -q started "$work/queries" && break; sleep 0.1; done

# The image, as containers/image.sh builds it.
mkdir "$work/image" "$work/application"
strip -o "$work/image/tidegate" "$binary"
podman build -q -t tidegate -f "$repository/containers/Dockerfile" "$work/image" >/dev/null
size=$(podman image inspect -f '{{.Size}}' tidegate)
check "the image is below 20 MB ($size octets)" yes "$([ "${size:-0}" -gt 0 ] && [ "$size" -lt 20000000 ] && echo yes)"
cp "$(command -v busybox)" "$work/application/busybox"
printf 'FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT ["/bin/busybox"]\n' > "$work/application/Dockerfile"
podman build -q -t application "$work/application" >/dev/null

# The policy that is shipped, with the names and the resolver of this place.
mkdir "$work/policy"
sed 's/api.partner.example/allowed.example/; s/10.96.0.10/203.0.113.53/' "$repository/containers/sidecar.toml" \
  > "$work/policy/tidegate.toml"

network=ns:/run/netns/client
sidecar_up() { # as containers/compose.yaml has it
  podman run -d --name sidecar --network $network --read-only --cap-drop all \
    --cap-add net_admin,net_raw,setuid,setgid --security-opt no-new-privileges \
    -v "$work/policy:/etc/tidegate:ro" tidegate >/dev/null
  is_ready
}
is_ready() {
  local i; for i in $(seq 100); do podman exec sidecar /tidegate probe && return; sleep 0.1; done
  failed=$((failed + 1)); echo "FAILED: the sidecar is not ready"; podman logs sidecar; cat "$work/podman.err"
}
# A static C library finds names in files alone: DNS is asked by nslookup.
application() { # program arguments...: what it prints, as an ordinary user without capabilities
  podman run --rm --network $network --user 1000:1000 --cap-drop all --security-opt no-new-privileges \
    --add-host allowed.example:203.0.113.10 --add-host other.example:203.0.113.10 application "$@" 2>&1
}
fetch() { # wget's arguments: what the server says, or how it ended
  local said status
  # The first process of a container is not to be ended by a signal from within.
  said=$(application sh -c '/bin/busybox timeout 2 /bin/busybox wget -q -O - "$@"; exit $?' sh "$@") status=$?
  case $status in
    0) echo "$said" ;;
    1) echo refused ;;
    143) echo silence ;;
    *) echo "status $status" ;;
  esac
}
requests() { grep -c . "$work/access.log"; }
questions() { grep -c "query\[.*$1" "$work/queries"; }

podman run --rm --network $network --read-only --cap-drop all --cap-add net_admin -v "$work/policy:/etc/tidegate:ro" \
  tidegate run --rules-only
check "rules alone: they are put in place" 0 $?
check "rules alone: a flow" silence "$(fetch http://203.0.113.10/)"
check "rules alone: a question" "" "$(application nslookup allowed.example 203.0.113.53 | grep 203.0.113.10)"
check "rules alone: requests at the server" 0 "$(requests)"
check "rules alone: questions at the resolver" 0 "$(questions example)"

sidecar_up
check "alive" 0 "$(podman exec sidecar /tidegate probe --live; echo $?)"
check "http to an allowed name" served "$(fetch http://allowed.example/)"
check "https to an allowed name" served "$(fetch --no-check-certificate https://allowed.example/)"
check "dns of an allowed name" yes "$(application nslookup allowed.example 203.0.113.53 | grep -q 203.0.113.10 && echo yes)"
seen=$(requests) asked=$(questions other.example)
check "http to an unlisted name" refused "$(fetch http://other.example/)"
check "http to an unlisted name at an allowed address" refused "$(fetch --header 'Host: other.example' http://203.0.113.10/)"
check "an allowed name at another address" refused "$(fetch --header 'Host: allowed.example' http://203.0.113.20/)"
check "dns of an unlisted name" yes "$(application nslookup other.example 203.0.113.53 | grep -q NXDOMAIN && echo yes)"
check "another resolver" "" "$(application nslookup allowed.example 203.0.113.10 | grep -w Name)"
check "another port" refused "$(fetch http://203.0.113.10:81/)"
check "requests of all this at the server" "$seen" "$(requests)"
check "questions of all this at the resolver" "$asked" "$(questions other.example)"
check "it cannot become the sidecar's user" "" "$(application setpriv --reuid 7469 id | grep 7469)"

asked=$(questions example)
podman kill -s KILL sidecar >/dev/null
check "killed: http" silence "$(fetch http://allowed.example/)"
check "killed: http by address" silence "$(fetch http://203.0.113.10/)"
check "killed: https" silence "$(fetch --no-check-certificate https://203.0.113.10/)"
check "killed: dns" "" "$(application nslookup allowed.example 203.0.113.53 | grep 203.0.113.10)"
check "killed: requests at the server" "$seen" "$(requests)"
check "killed: questions at the resolver" "$asked" "$(questions example)"

podman start sidecar >/dev/null
is_ready
check "started again: http to an allowed name" served "$(fetch http://allowed.example/)"
check "started again: http to an unlisted name" refused "$(fetch http://other.example/)"
seen=$(requests)
podman stop -t 10 sidecar >/dev/null
check "stopped: it ended in order" 0 "$(podman inspect -f '{{.State.ExitCode}}' sidecar)"
check "stopped: http" silence "$(fetch http://203.0.113.10/)"
check "stopped: requests at the server" "$seen" "$(requests)"
finish
