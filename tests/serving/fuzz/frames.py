"""WebSocket frames that no library sends, and openings that no browser makes; of every dialect with a WebSocket."""

import random
import struct

from serving.fuzz.case import BINARY, CLOSE, PING, PONG, TEXT, Case, Step, frame, request, text, upgrade
from serving.fuzz.values import STRINGS

CODES = [
    0, 1, 999, 1000, 1001, 1004, 1005, 1006, 1007, 1011, 1012, 1013, 1014, 1015, 1016, 2999, 3000, 4000, 4999, 5000,
    65_535,
]  # fmt: skip


def frames(case: Case, rng: random.Random, valid: str) -> Case:
    """After the opening, `valid` (a message) perhaps, and then frames of one wrong kind."""
    case.kind = "frames"
    if rng.random() < 0.5:
        case.hear()
    if rng.random() < 0.5:
        case.message(valid)
    how = rng.randrange(17)
    data = rng.randbytes(rng.choice([0, 1, 5, 125, 126, 1000]))
    if how == 0:
        case.send(frame(rng.choice([3, 4, 5, 6, 7, 11, 12, 15]), data[:125]))
    elif how == 1:
        case.send(frame(TEXT, valid.encode(), mask=None))
    elif how == 2:
        case.send(frame(rng.choice([TEXT, BINARY, PING]), data[:125], bits=rng.randrange(1, 8)))
    elif how == 3:  # a length that never comes
        case.send(frame(TEXT, data, length=rng.choice([2**16, 2**24, 2**31, 2**62, 2**63, 2**64 - 1])))
    elif how == 4:  # a length written longer than need be
        case.send(b"\x81\xfe" + struct.pack(">H", 5) + bytes(4) + b"hello")
        case.send(b"\x81\xff" + struct.pack(">Q", 5) + bytes(4) + b"hello")
    elif how == 5:  # one message that never ends
        case.send(frame(TEXT, b'{"type": "', fin=False))
        case.send(frame(0, rng.choice([b"", b"x", b"x" * 2000]), fin=False) * rng.choice([10, 200, 1000]))
    elif how == 6:
        case.send(frame(0, data))
    elif how == 7:  # a message inside another
        case.send(frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"))
    elif how == 8:
        case.send(frame(PING, data[:125]) * rng.choice([1, 100, 3000]))
    elif how == 9:
        case.send(frame(rng.choice([PING, PONG, CLOSE]), bytes(126)))
    elif how == 10:
        case.send(frame(rng.choice([PING, CLOSE]), b"x", fin=False))
    elif how == 11:
        words = rng.choice([b"", b"bye", b"\xff\xfe", b"x" * 123])
        case.closes = rng.choice(CODES)
        case.send(frame(CLOSE, struct.pack(">H", case.closes) + words))
    elif how == 12:
        case.send(frame(CLOSE, rng.choice([b"", b"\x03"]))).send(frame(TEXT, valid.encode()))
    elif how == 13:
        case.send(frame(TEXT, rng.choice([b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", valid.encode() + b"\x80",
            data + b"\xfe"])))
    elif how == 14:
        case.send(rng.randbytes(rng.choice([1, 7, 100, 5000])))
    elif how == 16:  # it says much, and reads nothing
        case.steps.append(Step("deaf"))
        case.send(frame(PING, bytes(125)) * 3000).send(text(valid) * 50).pause(0.5)
        case.owes, case.leaves = "", "reset"
        return case
    else:
        case.send(frame(PONG, data[:125]) * 50).send(frame(BINARY, data))
    if rng.random() < 0.2:
        case.split(rng, rng.choice([1, 5, 40]))
    case.leaves = rng.choice(["close", "fin", "reset"])
    return case


def headers(rng: random.Random) -> list[tuple[str, str]]:
    """Some headers that servers and applications look at, with what nobody would put there."""
    odd = [
        "", " ", "x" * rng.choice([10, 5000, 9000, 20_000]), "\x7f", "é", "\xff\xfe", "[", "[::1", "http://[",
        "http://[::1", "null", "http://x:99999", "http://x:port", "//", "%00", "a,b,,c", "Bearer", "Bearer \xff",
        "-1", "1e9", *STRINGS[:6],
    ]  # fmt: skip
    names = [
        "Origin", "Host", "Authorization", "X-API-Key", "X-Forwarded-For", "X-Forwarded-Proto", "Cookie", "Accept",
        "If-None-Match", "Range", "Content-Type", "Content-Length", "Transfer-Encoding", "Expect", "Connection",
        "Upgrade", "OpenAI-Beta", "Sec-WebSocket-Protocol", "Sec-WebSocket-Version", "Sec-WebSocket-Key",
        "Sec-WebSocket-Extensions", "Forwarded", "X-HTTP-Method-Override",
    ]  # fmt: skip
    found = []
    urls = [
        "http://[", "http://[::1", "http://x:99999", "http://x:port", "//", "null", "", "https://", "http://\xe9",
        "javascript:1",
    ]
    for _ in range(rng.choice([1, 1, 2, 3, 150])):
        value = rng.choice(odd)
        if rng.random() < 0.2:
            found.append((rng.choice(["Origin", "Host", "Origin", "X-Forwarded-For"]), rng.choice(urls)))
        if rng.random() < 0.3:
            value = rng.choice([
                "https://127.0.0.1", "http://evil.example", "realtime, openai-insecure-api-key.\xe9", "realtime=v1",
                "permessage-deflate; client_max_window_bits=99", "chunked", "chunked, chunked", "100-continue",
                "bytes=0-", '"' * 500, "multipart/form-data", "127.0.0.1, 10.0.0.1",
            ])  # fmt: skip
        found.append((rng.choice(names), value.encode("utf-8", "surrogatepass").decode("latin-1")))
    return found


def openings(case: Case, rng: random.Random, target: str) -> Case:
    """The opening of a WebSocket, with something wrong in it."""
    case.kind, case.owes, case.leaves = "opening", "answer", rng.choice(["fin", "reset"])
    how = rng.randrange(8)
    if how == 0:
        case.send(upgrade(target, key=rng.choice(["", "x", "AAAA", "=" * 24, "é", "A" * 500])))
    elif how == 1:
        case.send(upgrade(target).replace(b"Version: 13", b"Version: " + rng.choice([b"8", b"99", b"x", b""])))
    elif how == 2:
        case.send(upgrade(target).replace(b"GET", rng.choice([b"POST", b"HEAD", b"get", b"CONNECT"]), 1))
    elif how == 3:  # twice what may be there once
        case.send(upgrade(target, [("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x"), ("Connection", "Upgrade")]))
    elif how == 4:
        case.send(request("GET", target, [("Upgrade", rng.choice(["h2c", "WebSocket, x", ""])), ("Connection",
            "Upgrade")]))
    elif how == 5:
        odd = [
            "?model=%ff%fe", "?" + "a=b&" * 3000, "?%00=%00", "?resume=%ED%A0%80", "?api_key=%C3%A9", "?seed=1e999",
            "?model=echo&strict=1&strict=0", "?resume=" + "x" * 3000, "?intent=transcription", "?queue=1&metadata=1",
            "?seed=" + "9" * 4000, "?max_steps=-1", "?stamps=1&status=1",
        ]  # fmt: skip
        case.send(upgrade(target + rng.choice(odd), headers(rng) if rng.random() < 0.2 else None))
    elif how == 6:
        case.send(upgrade(target, headers(rng)))
    else:  # frames that come with the opening
        case.send(upgrade(target) + frame(TEXT, b"{}") * rng.choice([1, 20]))
    if rng.random() < 0.2:
        case.split(rng, rng.choice([1, 10, 60]))
    return case
