#!/usr/bin/env python3
"""Servers that take down whom they are taken for: Python's HTTP on port 80 and OpenSSL, as Python has it, on 443.

    server.py ADDRESS CERTIFICATE KEY LOG
"""

import http.server
import socketserver
import ssl
import sys
import threading


class Named(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        note(f"http {self.path} {self.headers.get_all('host')}")
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("content-length", "7")
        self.end_headers()
        self.wfile.write(b"served\n")

    do_GET = do_POST = do_HEAD = do_OPTIONS = do_CONNECT = do_FROB = answer

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def handle_error(self, *_):
        pass


class Tls(Server):
    def get_request(self):
        stream, client = super().get_request()
        return context.wrap_socket(stream, server_side=True, do_handshake_on_connect=False), client


def note(line):
    with lock, open(log, "a", encoding="utf-8") as file:
        file.write(line + "\n")


address, certificate, key, log = sys.argv[1:]
lock = threading.Lock()
open(log, "w").close()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
context.set_ciphers("ALL:@SECLEVEL=0")
context.sni_callback = lambda _, name, __: note(f"tls {name}")
servers = [Server((address, 80), Named), Tls((address, 443), Named)]
for server in servers:
    threading.Thread(target=server.serve_forever).start()
