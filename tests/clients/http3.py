#!/usr/bin/env python3
"""HTTP/3 by aioquic, from both ends.

    http3.py serve CERTIFICATE KEY LOG ADDRESS...         answers GET /N with N octets; its log has every name of a hello
    http3.py get NAME ADDRESS OCTETS [VERSION] [COUNT]    `pass`, or `block` for a failure, behind the seconds it took
"""

import asyncio
import ssl
import sys
import time

from aioquic import tls
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion

VERSIONS = {"1": QuicProtocolVersion.VERSION_1, "2": QuicProtocolVersion.VERSION_2}
PATIENCE = 5


class Server(QuicConnectionProtocol):
    http = None

    def quic_event_received(self, event):
        self.http = self.http or H3Connection(self._quic)
        for come in self.http.handle_event(event):
            if isinstance(come, HeadersReceived):
                headers = dict(come.headers)
                note(f"request {headers[b':authority'].decode()}")
                size = headers[b":path"].decode().strip("/")
                body = b"x" * int(size) if size.isdigit() else b"<html><body>served by http/3</body></html>"
                kind = [(b":status", b"200"), (b"content-type", b"text/html"), (b"content-length", str(len(body)).encode())]
                self.http.send_headers(come.stream_id, kind)
                self.http.send_data(come.stream_id, body, end_stream=True)
                self.transmit()


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.answers = {}

    async def get(self, name, octets):
        stream = self._quic.get_next_available_stream_id()
        self.answers[stream] = (asyncio.get_running_loop().create_future(), [])
        wanted = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", name.encode()), (b":path", b"/%d" % octets)]
        self.http.send_headers(stream, wanted, end_stream=True)
        self.transmit()
        return await self.answers[stream][0]

    def quic_event_received(self, event):
        for come in self.http.handle_event(event):
            done, pieces = self.answers[come.stream_id]
            if isinstance(come, DataReceived):
                pieces.append(come.data)
            if come.stream_ended and not done.done():
                done.set_result(b"".join(pieces))


def note(line):
    with open(log, "a", encoding="utf-8") as file:
        file.write(line + "\n")


async def get(name, address, octets, version, count):
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, server_name=name, verify_mode=ssl.CERT_NONE, original_version=VERSIONS[version],
        supported_versions=[VERSIONS[version]],
    )
    async with connect(address, 443, configuration=configuration, create_protocol=Client) as client:
        for body in await asyncio.gather(*(client.get(name, octets) for _ in range(count))):
            assert body == b"x" * octets, f"{len(body)} octets instead of {octets}"


async def run_server(certificate, key, addresses):
    read_hello = tls.pull_client_hello

    def noted(buffer):
        hello = read_hello(buffer)
        note(f"hello {hello.server_name}")
        return hello

    tls.pull_client_hello = noted
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN, supported_versions=list(VERSIONS.values()))
    configuration.load_cert_chain(certificate, key)
    for address in addresses:
        await serve(address, 443, configuration=configuration, create_protocol=Server, retry=address.endswith("12"))
    note("serves")
    await asyncio.Event().wait()


if sys.argv[1] == "serve":
    log = sys.argv[4]
    asyncio.run(run_server(sys.argv[2], sys.argv[3], sys.argv[5:]))
else:
    name, address, octets, version, count = (sys.argv[2:] + ["1", "1"][len(sys.argv) - 5 :])[:5]
    begun = time.monotonic()
    try:
        asyncio.run(asyncio.wait_for(get(name, address, int(octets), version, int(count)), PATIENCE))
        outcome = "pass"
    except (OSError, asyncio.TimeoutError, AssertionError) as e:
        outcome = "block"
        print(repr(e), file=sys.stderr)
    print(f"{time.monotonic() - begun:.2f} {outcome}")
