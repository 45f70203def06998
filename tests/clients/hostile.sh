#!/usr/bin/env bash
# The second suite, hostile part: blocked names in every form that some server takes, through a real gateway to real
# servers. The measure is what the servers' own logs say: without the gateway many forms are served, through it none.
#
#   tests/clients/hostile.sh [path of tidegate]     needs: python3, nginx, openssl, iproute2; and takes, where they
#                                                   are: apache2, lighttpd, haproxy, gnutls-serv
#
# Everything stands in namespaces of its own and is gone afterwards. The last line counts what passed and failed.
set -u
[ $# = 0 ] || set -- "$(readlink -f "$1")"
cd "$(dirname "$0")"
. ./lab.sh
enter "$0" "${1:-}" python3 openssl nginx ip unshare
tidegate=$1

lab_up
for last in 11 12 13 14 15 16 17; do on server ip addr add 203.0.113.$last/24 dev to-gateway; done
certificate

serve() { # name protocol address port, then a command that runs in the server
  local name=$1 protocol=$2 address=$3 port=$4; shift 4
  [ $# = 0 ] || { on server "$@" >"$work/$name.said" 2>&1 & }
  echo "$name-$protocol $protocol $address $port $work/$name-$protocol.log" >> "$work/servers"
  touch "$work/$name-$protocol.log"
}
has() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null || { echo "without $1, which is not here"; false; }; }

cat > "$work/nginx.conf" <<CONF
daemon off; master_process off; pid $work/nginx.pid; user root; error_log $work/nginx.err;
events {}
http {
  log_format name '\$host \$http_host'; client_body_temp_path $work/body; proxy_temp_path $work/proxy;
  fastcgi_temp_path $work/fcgi; uwsgi_temp_path $work/uwsgi; scgi_temp_path $work/scgi;
  server { listen 203.0.113.10:80; access_log $work/nginx-http.log name; location / { return 200 "served\n"; } }
  server { listen 203.0.113.11:80 http2; access_log $work/nginx-http2.log name; location / { return 200 "served\n"; } }
  server {
    listen 203.0.113.10:443 ssl http2; access_log off; error_log $work/nginx-tls.log debug;
    ssl_certificate $work/cert.pem; ssl_certificate_key $work/key.pem; location / { return 200 "served\n"; }
    ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3; ssl_ciphers ALL:@SECLEVEL=0;
  }
}
CONF
on server nginx -c "$work/nginx.conf" 2>"$work/nginx.said" &
serve nginx http 203.0.113.10 80
serve nginx http2 203.0.113.11 80
serve nginx tls 203.0.113.10 443
on server python3 server.py 203.0.113.12 "$work/cert.pem" "$work/key.pem" "$work/python.log" &
ln -s python.log "$work/python-http.log"
cp /dev/null "$work/python.log"
serve python http 203.0.113.12 80

serve openssl tls 203.0.113.13 443
on server stdbuf -oL openssl s_server -accept 203.0.113.13:443 -cert "$work/cert.pem" -key "$work/key.pem" -www \
  -cipher ALL:@SECLEVEL=0 -servername other.example -cert2 "$work/cert.pem" -key2 "$work/key.pem" \
  >"$work/openssl-tls.log" 2>&1 &

if has gnutls-serv; then
  # It knows no address of its own to listen at, so it has a port to itself.
  serve gnutls tls 203.0.113.14 4433
  on server stdbuf -oL gnutls-serv --http -p 4433 -d 4 --x509certfile "$work/cert.pem" --x509keyfile "$work/key.pem" \
    >"$work/gnutls-tls.log" 2>&1 </dev/null &
fi
if has haproxy; then
  cat > "$work/haproxy.cfg" <<CONF
defaults
  mode http
  timeout client 5s
  timeout http-keep-alive 5s
  timeout connect 1s
  timeout server 1s
frontend named
  bind 203.0.113.15:80
  http-request capture req.hdr(host) len 300
  http-request capture url len 300
  log stdout format raw local0
  log-format "%[capture.req.hdr(0)] %[capture.req.hdr(1)]"
  option accept-invalid-http-request
  http-request return status 200 content-type text/plain string served
CONF
  on server haproxy -f "$work/haproxy.cfg" >"$work/haproxy.log" 2>"$work/haproxy.said" &
  ln -s haproxy.log "$work/haproxy-http.log"; ln -s haproxy.log "$work/haproxy-http2.log"
  serve haproxy http 203.0.113.15 80
fi
if has lighttpd; then
  mkdir -p "$work/www"; echo served > "$work/www/index.html"
  cat > "$work/lighttpd.conf" <<CONF
server.modules = ("mod_indexfile", "mod_accesslog")
server.document-root = "$work/www"
server.bind = "203.0.113.16"
server.port = 80
index-file.names = ("index.html")
accesslog.filename = "$work/lighttpd-http.log"
accesslog.format = "%V %{Host}i"
accesslog.use-syslog = "disable"
server.http-parseopts = ("header-strict" => "disable", "host-strict" => "disable", "host-normalize" => "disable")
server.feature-flags = ("server.h2proto" => "enable", "server.h2c" => "enable")
CONF
  serve lighttpd http 203.0.113.16 80 lighttpd -D -f "$work/lighttpd.conf"
fi
if has apache2; then
  mkdir -p "$work/www"; echo served > "$work/www/index.html"
  modules=$(ls -d /usr/lib/apache2/modules)
  cat > "$work/apache.conf" <<CONF
ServerRoot $work
ServerName other.example
PidFile $work/apache.pid
DefaultRuntimeDir $work
Mutex posixsem
LoadModule mpm_event_module $modules/mod_mpm_event.so
LoadModule authz_core_module $modules/mod_authz_core.so
LoadModule http2_module $modules/mod_http2.so
LoadModule dir_module $modules/mod_dir.so
Listen 203.0.113.17:80
Protocols h2c http/1.1
HttpProtocolOptions Unsafe LenientMethods Allow0.9
UseCanonicalName Off
KeepAliveTimeout 5
DocumentRoot $work/www
DirectoryIndex index.html
ErrorLog $work/apache.err
LogFormat "%V %{Host}i" name
CustomLog $work/apache-http.log name
CONF
  serve apache http 203.0.113.17 80 apache2 -f "$work/apache.conf" -DFOREGROUND
fi
ready "$work/servers"

on server python3 hostile.py deliver "$work/servers" "$work/direct" || exit 1
for log in "$work"/*.log; do [ -L "$log" ] || : > "$log"; done
configuration=$work/hostile.toml
{ cat gateway.toml; printf '%s\n' 'tls_ports = [443, 4433]' 'timeout = "500ms"'; } > "$configuration"
gateway_up explicit
on client python3 hostile.py deliver "$work/servers" "$work/through" || exit 1
gateway_down
python3 hostile.py compare "$work/direct" "$work/through" > "$work/table"
cat "$work/table"
[ -z "${TIDEGATE_KEEP:-}" ] || cp -r "$work" "$TIDEGATE_KEEP"
while IFS=$'\t' read -r _ server _ _ through lines; do
  lines=${lines#names in its log }
  check "$server, forms served through the gateway" "through it 0, 0" "$through, ${lines#*, }"
  check "$server serves blocked names without it" yes "$([ "${lines%,*}" -gt 20 ] && echo yes || echo "$lines")"
done < <(grep '^server' "$work/table")
check "servers" "$(grep -c . "$work/servers")" "$(grep -c '^server' "$work/table")"
check "forms served, by the whole of every log" 0 "$(grep -c '^SERVED' "$work/table")"
check "innocent twins of well-formed forms refused" 0 "$(grep -c '^REFUSED' "$work/table")"
finish
