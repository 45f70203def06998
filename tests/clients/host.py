"""The servers of exec.sh: a resolver at 127.0.0.53, and the files of a folder over HTTP on ports 80 and 9000, and over
TLS on 443.

    host.py FOLDER HEARD CERTIFICATE KEY    each request's own address goes to HEARD, which exists once all is ready
"""
import functools
import http.server
import socket
import ssl
import struct
import sys
import threading

NAMES = {"allowed.example": ("198.51.100.1", "2001:db8:a::1"), "other.example": ("198.51.100.2", "2001:db8:a::2")}


class Files(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        with open(sys.argv[2], "a") as heard:
            print(self.connection.getsockname()[0], file=heard)
        super().do_GET()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


def answer(query):
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += query[at] + 1
    kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
    found = NAMES.get(".".join(labels))
    records = b""
    if found and kind in (1, 28):
        data = socket.inet_pton(*((socket.AF_INET, found[0]) if kind == 1 else (socket.AF_INET6, found[1])))
        records = b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(data)) + data
    flags = b"\x81\x80" if found else b"\x81\x83"
    counts = struct.pack(">HHHH", 1, 1 if records else 0, 0, 0)
    return query[:2] + flags + counts + query[12 : at + 5] + records


def resolve():
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.53", 53))
    open(sys.argv[2], "a").close()
    while True:
        query, client = resolver.recvfrom(4096)
        resolver.sendto(answer(query), client)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[3:])
for port in (80, 443, 9000):
    server = Server(("::", port), functools.partial(Files, directory=sys.argv[1]))
    if port == 443:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
resolve()
