"""HTTP as it should not be, and the clients that take their time with it: of every path."""

import random

from serving.fuzz.case import Case, request
from serving.fuzz.frames import headers

METHODS = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "G@T", "X" * 300, "PRI",
    "",
]
PATHS = [
    "/", "/health", "/metrics", "/v1/queue", "/v1/sessions", "/page/talk.js", "/page/index.html", "/page/", "/page",
    "/health/", "/v1/models", "/v1/models/x", "/v1/capabilities", "/v1/", "/api/chat", "/with/x/api/chat",
    "/favicon.ico", "/v1/live/sessions/x/content", "/v1/live/sessions/x/hangup", "/v1/realtime/client_secrets",
    "/v1/audio/speech",
    "/v1/realtime/calls", "/v1/realtime", "/v1/realtime/calls/x/hangup",
]  # fmt: skip
TAILS = [
    "", "/", "//", "/..", "/../../../etc/passwd", "%2e%2e%2f%2e%2e%2f", "%00", "%ff%fe", "%", "%zz", "?" * 50, "#x",
    ";x=1", "/%2f/", "\\..\\", "?a=" + "b" * 5000, "?%ED%A0%80", "/" * 3000, "?" + "&" * 500,
]  # fmt: skip
SLOW = "slow"


def plain(case: Case, rng: random.Random, path: str | None = None) -> Case:
    """One request, or several, of which something is wrong; often only a little."""
    case.kind, case.owes, case.leaves = "http", "answer", rng.choice(["fin", "reset"])
    path = path or rng.choice(PATHS)
    how = rng.randrange(14)
    if how < 3:
        case.send(request(rng.choice(METHODS), path + rng.choice(TAILS)))
    elif how < 6:
        case.send(request(rng.choice(METHODS[:6]), path + rng.choice(TAILS[:4]), headers(rng)))
    elif how == 6:
        case.send(request("GET", path, version=rng.choice(["HTTP/0.9", "HTTP/1.0", "HTTP/2.0", "", "HTTQ/1.1"])))
    elif how == 7:  # chunks that are none
        body = rng.choice([
            b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\nx", b"5;" + b"x" * 9000,
            b"5\r\nhellooooo\r\n", b"0\r\nA: b\r\n\r\n", b"1\r\nx\r\n" * 500 + b"0\r\n\r\n",
        ])  # fmt: skip
        case.send(request("POST", path, [("Transfer-Encoding", "chunked")], body))
    elif how == 8:  # both lengths, several lengths, odd lengths
        lengths = rng.choice([["5", "6"], ["5", "5"], ["-5"], ["+5"], ["5 "], ["0x5"], ["9" * 40], ["5, 5"], ["", "5"]])
        case.send(request("POST", path, [("Content-Length", each) for each in lengths], b"hello"))
    elif how == 9:
        case.send(request("POST", path, [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
            b"0\r\n\r\nGET /x HTTP/1.1"))
    elif how == 10:  # one after the other, without waiting
        case.send(request("GET", path) * rng.choice([2, 20, 100]))
    elif how == 11:
        case.send(rng.choice([
            b"\0" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n", b"\r\n" * 500,
            b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n x: y\r\n\r\n", b"GET / HTTP/1.1\r\nx y: z\r\n\r\n",
            b"GET / HTTP/1.1\nHost: x\n\n", b"GET  /  HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            rng.randbytes(300) + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET http://x/ HTTP/1.1\r\nHost: y\r\n\r\n",
        ]))  # fmt: skip
    elif how == 12:  # headers without an end
        case.send(b"GET / HTTP/1.1\r\n" + b"A: " + b"b" * 100_000)
    else:
        many = [(f"X-{at}", "y" * rng.choice([1, 50])) for at in range(rng.choice([90, 200, 1000]))]
        case.send(request("GET", path, many))
    if rng.random() < 0.15:
        case.split(rng, rng.choice([1, 10, 60]))
    return case


def slow(case: Case, rng: random.Random, opening: bytes, body: bytes = b"") -> Case:
    """A client that takes its time, or none at all any more: the server ends it."""
    case.kind, case.owes, case.leaves = SLOW, "end", rng.choice(["fin", "reset"])
    how = rng.randrange(5)
    if how == 0:  # nothing
        return case
    if how == 1:  # a head that never ends, byte by byte
        for at in range(0, min(len(opening) - 4, 12)):
            case.send(opening[at : at + 1]).pause(0.3)
        return case
    if how == 2:
        return case.send(opening[: rng.randrange(1, len(opening) - 3)])
    if how == 3 and body:  # a body that never ends
        case.send(opening).send(body[: rng.randrange(len(body))]).pause(0.3).send(b"x")
        return case
    case.send(opening[: len(opening) // 2])  # half-open: the way out is closed, the head is not whole
    case.steps.append(case.steps[-1].__class__("half"))
    return case
