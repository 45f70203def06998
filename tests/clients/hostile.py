#!/usr/bin/env python3
"""Delivers the hostile forms of tests/data to real servers and tells, form by form, what each server took it for.

    hostile.py deliver SERVERS RESULTS     SERVERS: lines of `name protocol address port log`
    hostile.py compare DIRECT GATEWAY      two files of results: without a gateway between, and with one

The measure is the server's own log: a form is *served* if its part of the log holds a blocked name. Delivered without
a gateway the forms show which of them a server takes at all; delivered through the gateway none may be served.
Nothing but the standard library is used.
"""

import concurrent.futures
import os
import re
import socket
import struct
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BLOCKED = re.compile(rb"blocked\.{1,2}example", re.IGNORECASE)
# A server of TLS may log far more than whom it was asked for.
ASKED = {"tls": re.compile(rb"name[^\n]*blocked\.{1,2}example", re.IGNORECASE)}
# For a first octet of an answer, and for more behind it, in seconds.
PATIENCE, PAUSE = 0.8, 0.05


# The tables of forms


def rows(path):
    with open(os.path.join(HERE, path), encoding="utf-8") as table:
        for line in table:
            line = line.rstrip("\n")
            if line and not line.startswith("#"):
                yield (field.strip() for field in line.split(" | ", 2))


def sound(expected, form, build):
    """The octets of a form; and, if it is well formed, of its twin, which has an innocent name and must pass."""
    twin = re.sub("[Bb]locked", "allowed", form).replace("BLOCKED", "ALLOWED")
    must_pass = twin != form and not {"unreadable", "more"} & set(expected.split())
    return [build(form)], [build(twin)] if must_pass else None


def unescape(text):
    """`\\r`, `\\n`, `\\t`, `\\xNN`, and `{N:text}` for a text that comes so many times."""
    text = re.sub(r"\{(\d+):([^}]*)\}", lambda found: found[2] * int(found[1]), text)
    plain = {"r": "\r", "n": "\n", "t": "\t"}
    one = lambda found: chr(int(found[2], 16)) if found[2] else plain[found[1]]
    return re.sub(r"\\(?:x([0-9a-f]{2})|([rnt]))", lambda f: chr(int(f[1], 16)) if f[1] else plain[f[2]], text).encode(
        "latin-1"
    )


def vec16(octets):
    return struct.pack(">H", len(octets)) + octets


def extension(kind, body):
    return struct.pack(">H", kind) + vec16(body)


def server_names(*entries):
    return extension(0, vec16(b"".join(bytes([kind]) + vec16(name) for kind, name in entries)))


def message(body):
    return b"\x01" + struct.pack(">I", len(body))[1:] + body


def hello(extensions, suites=(0x1301, 0xC02F, 0xC02B)):
    suites = b"".join(struct.pack(">H", suite) for suite in suites)
    return message(b"\x03\x03" + b"\x07" * 32 + b"\x00" + vec16(suites) + b"\x01\x00" + vec16(extensions))


def tls_recipe(recipe, serious):
    """The octets that tests/data/hostile-tls.txt describes; `serious`: with all that a handshake needs behind them."""
    extensions = lead = between = tail = inside = b""
    size, version, bare, kinds = 16000, b"\x03\x01", False, set()
    for word in recipe.split():
        key, _, value = word.partition("=")
        one, _, two = value.partition(",")
        if key == "sni":
            extensions += server_names((0, unescape(value)))
        elif key == "sni2":
            extensions += server_names((0, unescape(one)), (0, unescape(two)))
        elif key == "sni-type":
            extensions += server_names((int(one), unescape(two)))
        elif key == "sni-type-first":
            extensions += server_names((1, unescape(one)), (0, unescape(two)))
        elif key == "sni-raw":
            extensions += extension(0, bytes.fromhex(value))
        elif key == "ext":
            kinds.add(int(one, 16))
            extensions += extension(int(one, 16), bytes.fromhex(two))
        elif key == "pad":
            extensions += extension(21, bytes(int(value)))
        elif key == "many":
            extensions += b"".join(extension(0x7000 + n, b"") for n in range(int(value)))
        elif key == "raw":
            extensions += bytes.fromhex(value)
        elif key in ("lead", "tail", "between", "inside"):
            octets = bytes.fromhex(value)
            lead, tail = lead + octets * (key == "lead"), tail + octets * (key == "tail")
            between = octets if key == "between" else between
            inside = octets if key == "inside" else inside
        elif key == "split":
            size = int(value)
        elif key == "version":
            version = bytes.fromhex(value)
        elif key == "no-extensions":
            bare = True
        else:
            raise ValueError(f"unknown word {word}")
    if serious and not bare:
        extensions += b"".join(body for kind, body in SERIOUS if kind not in kinds)
    whole = hello(extensions)
    if bare:
        whole = message(b"\x03\x03" + b"\x07" * 32 + b"\x00" + vec16(b"\xc0\x2f\xc0\x2b") + b"\x01\x00")
    if inside:
        whole = message(whole[4:] + inside)
    pieces = [b"\x16" + version + vec16(whole[at : at + size]) for at in range(0, len(whole), size)]
    return lead + between.join(pieces) + tail


SERIOUS = [
    (kind, extension(kind, body))
    for kind, body in [
        (0x000A, vec16(b"\x00\x1d\x00\x17")),
        (0x000B, b"\x01\x00"),
        (0x000D, vec16(b"\x04\x03\x08\x04\x04\x01\x05\x03\x08\x05\x05\x01")),
        (0x0017, b""),
        (0x002B, b"\x04\x03\x04\x03\x03"),
        (0x002D, b"\x01\x01"),
        (0x0033, vec16(b"\x00\x1d" + vec16(b"\x09" * 32))),
    ]
]


def retried(first, second, between=b"\x14\x03\x03\x00\x01\x01", last=b""):
    """Two hellos, of which the first offers no share of a key, so that a server asks for the other."""

    def one(name, shares, last=b""):
        others = b"".join(body for kind, body in SERIOUS if kind != 0x0033)
        record = hello(server_names((0, name)) + others + extension(0x0033, vec16(shares)) + last)
        return b"\x16\x03\x01" + vec16(record)

    return [one(first, b"", last), between + one(second, b"\x00\x1d" + vec16(b"\x09" * 32))]


def http2_recipe(recipe):
    """Frames `TYPE.FLAGS.STREAM=PAYLOAD` behind the preface and empty settings."""
    octets = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    for word in recipe.split():
        head, _, payload = word.partition("=")
        kind, flags, stream = (int(part, 16) for part in head.split("."))
        payload = unescape(payload)
        octets += struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
    return octets


def tls_forms():
    """Like all of these: `(what, sends, sends of the twin or None)`. A server may answer between two sends."""
    for expected, what, form in rows("../data/hostile-tls.txt"):
        for kind in ("bare", "serious"):
            yield f"{what} ({kind})", *sound(expected, form, lambda form: tls_recipe(form, kind == "serious"))
    a, b = b"allowed.example", b"blocked.example"
    psk = extension(0x002A, b"") + extension(0x0029, vec16(vec16(b"ticket") + bytes(4)) + vec16(b"\x20" + bytes(32)))
    early = b"\x17\x03\x03" + vec16(bytes(60))
    second = "a second hello with another name"
    yield second, retried(a, b), retried(a, a)
    yield f"{second}, without change_cipher_spec", retried(a, b, b""), retried(a, a, b"")
    yield f"{second}, at once", [b"".join(retried(a, b))], None
    yield f"{second}, where the first had none", retried(b"192.0.2.1", b), None
    yield f"{second}, behind early data", retried(a, b, early, psk), retried(a, a, early, psk)
    yield f"{second}, behind early data, at once", [b"".join(retried(a, b, early, psk))], None
    yield "a hello of SSL 2 and one of TLS behind it", [SSL2 + tls_recipe("sni=blocked.example", True)], None
    for version in ("0301", "0302", "0303"):
        recipe = f"version={version} ext=002b,020303 sni=blocked.example"
        yield f"records of {version}, no TLS 1.3", *sound("", recipe, lambda recipe: tls_recipe(recipe, True))


def http_forms():
    for expected, what, form in rows("../data/hostile-http.txt"):
        yield what, *sound(expected, form, unescape)
    for expected, what, form in rows("../data/request-streams.txt"):
        yield f"stream: {what}", *sound(expected, form.replace("a.example", "allowed.example"), unescape)
    for what, sends in later_requests():
        twin = [BLOCKED.sub(b"allowed.example", octets) for octets in sends]
        yield what, sends, twin if what.startswith("kept alive") else None


def later_requests():
    """A blocked name in a later request, or in what only looks like a body."""
    ask = lambda name, fields="", method="GET": f"{method} / HTTP/1.1\r\nHost: {name}\r\n{fields}\r\n".encode()
    good, bad = ask("allowed.example"), ask("blocked.example")
    websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    yield "kept alive", [good, bad]
    for word, fields in (("websocket", websocket), ("h2c", h2c)):
        upgrade = ask("allowed.example", fields)
        yield f"kept alive behind a refused upgrade to {word}", [upgrade, bad]
        yield f"pipelined behind an upgrade to {word}", [upgrade + bad]
        yield f"pipelined behind a later upgrade to {word}", [good + upgrade + bad]
    for word, frames in (
        ("first", r"1.5.3=\x82\x86\x84\x41\x0fblocked.example"),
        ("second", r"1.5.3=\x82\x86\x84\x01\x0fallowed.example 1.5.5=\x82\x86\x84\x41\x0fblocked.example"),
    ):
        upgrade = ask("allowed.example", h2c)
        yield f"upgraded to HTTP/2, its {word} request", [upgrade, http2_recipe(frames)]
        yield f"upgraded to HTTP/2 at once, its {word} request", [upgrade + http2_recipe(frames)]
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "FROB"):
        for length in ("Content-Length: 41\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: 41\r\nExpect: 100-continue\r\n"):
            head = ask("allowed.example", length, method)
            body = b"29\r\n" + bad + b"\r\n0\r\n\r\n" if length.startswith("T") else bad
            old = head.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host", b"Connection: keep-alive\r\nHost")
            what = f"{method}, {length.split()[-1]}"
            yield f"a request inside the body, {what}", [head + body]
            yield f"a request inside the body, a little later, {what}", [head, body]
            yield f"a request inside the body, HTTP/1.0, {what}", [old + body]
    yield "half a method, then the rest", [bad[:2], bad[2:]]
    yield "an empty line, then the rest", [b"\r\n", bad]
    yield "a request without a name, then one with it", [b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", bad]
    yield "expectation, then a body, then another request", [
        ask("allowed.example", "Expect: 100-continue\r\nContent-Length: 3\r\n", "POST"),
        b"abc" + bad,
    ]
    yield "HEAD, then another request", [ask("allowed.example", "", "HEAD") + bad]
    yield "CONNECT, then another request", [ask("allowed.example:80", "", "CONNECT").replace(b" / ", b" allowed.example:80 "), bad]


def http2_forms():
    for expected, what, form in rows("hostile-http2.txt"):
        yield what, *sound(expected, form, http2_recipe)


FORMS = {"tls": tls_forms, "http": http_forms, "http2": http2_forms}
SSL2 = bytes.fromhex("802e0103010015000000100100800200800300800400800500800600400700c0") + b"\x07" * 16


# Delivery


def deliver_form(address, port, sends, in_octets):
    """How a server answered: answer, alert, reset, closed, silence."""
    seen = b""
    try:
        with socket.create_connection((address, port), timeout=PATIENCE) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for octets in sends:
                for at in range(0, len(octets), 1) if in_octets else [0]:
                    stream.sendall(octets[at : at + 1] if in_octets else octets)
                seen += answer(stream)
    except TimeoutError:
        return "silence" if not seen else kind_of(seen)
    except OSError:
        return "reset" if not seen else kind_of(seen) + ", reset"
    return kind_of(seen) if seen else "closed"


def answer(stream):
    """What comes until nothing more does. Silence from the first is a TimeoutError only for the last that is sent."""
    stream.settimeout(PATIENCE)
    octets = b""
    try:
        while len(octets) < 1 << 20:
            piece = stream.recv(1 << 16)
            if not piece:
                break
            octets += piece
            stream.settimeout(PAUSE)
    except TimeoutError:
        pass
    except ConnectionResetError:
        # What came before it counts.
        if not octets:
            raise
    return octets


def kind_of(seen):
    return {0x16: "answer", 0x15: "alert"}.get(seen[0], "answer")


def deliver_to(server):
    """Every form to one server, one after another, with what its log says of each."""
    name, protocol, address, port, log = server.split()
    results, asked = [], ASKED.get(protocol, BLOCKED)
    for what, sends, twin in FORMS[protocol]():
        for way in ("whole", "octets"):
            if way == "octets" and sum(map(len, sends)) > 700:
                continue
            for which, octets in [("form", sends)] + [("twin", twin)] * (way == "whole" and twin is not None):
                before = os.path.getsize(log)
                outcome = deliver_form(address, int(port), octets, way == "octets")
                with open(log, "rb") as file:
                    file.seek(before)
                    is_served = asked.search(file.read()) is not None
                results.append("\t".join([name, what, way, which, outcome, "SERVED" if is_served else "-"]))
    # One of them writes its log every four seconds.
    time.sleep(4.5)
    with open(log, "rb") as file:
        results.append(f"{name}\tall\tlog\tform\t-\t{len(asked.findall(file.read()))}")
    return results


def deliver(servers, results):
    with open(servers, encoding="utf-8") as file:
        servers = file.read().splitlines()
    with concurrent.futures.ThreadPoolExecutor(len(servers)) as pool:
        lines = [line for results in pool.map(deliver_to, servers) for line in results]
    with open(results, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def compare(direct, gateway):
    """A line for each server, and for each form that was served or whose innocent twin was not answered."""
    read = lambda path: dict(
        ((tuple(line.split("\t")[:4])), line.split("\t")[4:]) for line in open(path, encoding="utf-8").read().splitlines()
    )
    direct, gateway = read(direct), read(gateway)
    for key, (outcome, served) in gateway.items():
        if served not in ("-", "0"):
            print("SERVED", *key, outcome, served, sep="\t")
        if key[3] == "twin" and direct.get(key, [""])[0] == "answer" and outcome != "answer":
            print("REFUSED", *key, outcome, sep="\t")
    for server in sorted({key[0] for key in direct}):
        forms = lambda results: sum(1 for key, value in results.items() if key[0] == server and value[1] == "SERVED")
        lines = lambda results: results[server, "all", "log", "form"][1]
        sent = sum(1 for key in gateway if key[0] == server and key[3] == "form") - 1
        what = [f"served without the gateway {forms(direct)}", f"through it {forms(gateway)}"]
        print("server", server, f"forms {sent}", *what, f"names in its log {lines(direct)}, {lines(gateway)}", sep="\t")


if __name__ == "__main__":
    {"deliver": deliver, "compare": compare}[sys.argv[1]](*sys.argv[2:])
