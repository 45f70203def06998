# Sourced by the scripts here: namespaces, certificates, an nginx server, gateways by inspection type, and a count of
# checks.

# Starts the script again inside namespaces of its own, once the programs that it needs are found.
enter() { # script tidegate programs...
  local script=$1 tidegate=$2 program user=()
  shift 2
  PATH=$PATH:/usr/sbin:/sbin
  if [ -z "${TIDEGATE_INSIDE:-}" ]; then
    for program in "$@"; do
      command -v "$program" >/dev/null || { echo "missing: $program"; exit 1; }
    done
    [ "$(id -u)" = 0 ] || user=(--user --map-root-user)
    TIDEGATE_INSIDE=1 exec unshare "${user[@]}" --net --mount --pid --fork --kill-child --mount-proc \
      "./${script##*/}" "${tidegate:-$(readlink -f ../../target/debug/tidegate)}"
  fi
  work=$(mktemp -d) passed=0 failed=0
  trap 'rm -rf "$work"' EXIT
  mount -t tmpfs none /run && mkdir -p /run/netns
}

check() { # what, expected, seen
  if [ "$2" = "$3" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED $1: expected $2, saw $3"; fi
}

finish() {
  echo "$passed passed, $failed failed"
  [ $failed = 0 ]
}

on() { ip netns exec "$@"; }

lab_up() {
  local host
  for host in client gateway server; do ip netns add $host && on $host ip link set lo up; done
  # Link-local addresses are of use at once, or the first packets find no neighbour.
  for host in client gateway server; do
    on $host sh -c 'for of in all default; do echo 0 > /proc/sys/net/ipv6/conf/$of/accept_dad; done'
  done
  link client 10.1.0.2/24 fd00:1::2/64 gateway 10.1.0.1/24 fd00:1::1/64
  link server 203.0.113.2/24 2001:db8::2/64 gateway 203.0.113.1/24 2001:db8::1/64
  for last in 10 20; do
    on server ip addr add 203.0.113.$last/24 dev to-gateway
    on server ip addr add 2001:db8::$last/64 dev to-gateway nodad
  done
  on client ip route add default via 10.1.0.1
  on client ip -6 route add default via fd00:1::1
  on server ip route add default via 203.0.113.1
  on server ip -6 route add default via 2001:db8::1
  on gateway sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
}

link() { # host v4 v6 gateway v4 v6
  ip link add to-gateway netns "$1" type veth peer name "to-$1" netns "$4"
  on "$1" ip addr add "$2" dev to-gateway
  on "$1" ip addr add "$3" dev to-gateway nodad
  on "$4" ip addr add "$5" dev "to-$1"
  on "$4" ip addr add "$6" dev "to-$1" nodad
  on "$1" ip link set to-gateway up
  on "$4" ip link set "to-$1" up
}

certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=server.example \
    -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
}

# Waits until every server of a list (lines of `name protocol address port log`) takes connections.
ready() {
  local name address port i
  while read -r name _ address port _; do
    for i in $(seq 100); do
      on server bash -c "exec 3<>/dev/tcp/$address/$port" 2>/dev/null && continue 2
      sleep 0.1
    done
    echo "$name does not start:"; cat "$work/${name%-*}".{said,err} 2>/dev/null; exit 1
  done < "$1"
}

# Waits until a file has a line that begins so; shows another if it never does.
said() { # file line other
  local i
  for i in $(seq 100); do grep -q "^$2" "$1" && return; sleep 0.1; done
  echo "no $2 in $1:"; cat "$3"; exit 1
}

server_up() {
  certificate
  cat > "$work/nginx.conf" <<CONF
daemon off; worker_processes 1; pid $work/nginx.pid; error_log $work/nginx.log;
user root;
events {}
http {
  access_log $work/access.log; client_body_temp_path $work/body; proxy_temp_path $work/proxy;
  fastcgi_temp_path $work/fcgi; uwsgi_temp_path $work/uwsgi; scgi_temp_path $work/scgi;
  server {
    listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl;
    ssl_certificate $work/cert.pem; ssl_certificate_key $work/key.pem; ssl_ciphers ${ciphers:-HIGH:!aNULL:!MD5};
    location / { return 200 "served\n"; }
    location /large { alias $work/large; }
  }
}
CONF
  head -c 3000000 /dev/zero > "$work/large"
  (exec ip netns exec server nginx -c "$work/nginx.conf" 2>"$work/nginx.err") &
  local i; for i in $(seq 100); do
    on server curl -s -m 1 -o /dev/null http://127.0.0.1/ && return
    sleep 0.1
  done
  echo "nginx does not start:"; cat "$work/nginx.err"; exit 1
}

gateway_up() { # inspection type
  sed "s/TYPE/$1/" "${configuration:-gateway.toml}" > "$work/gateway.toml"
  : > "$work/messages" # Or the "ready" of the gateway before would be taken for this one's.
  (exec ip netns exec gateway "$tidegate" run --config "$work/gateway.toml" >"$work/records" 2>"$work/messages") &
  gateway=$!
  said "$work/messages" ready "$work/messages"
}

gateway_down() {
  kill $gateway
  wait $gateway || { failed=$((failed + 1)); echo "FAILED: tidegate ended with $?"; cat "$work/messages"; }
}
