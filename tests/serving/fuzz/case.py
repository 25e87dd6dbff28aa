"""One hostile visit: what is sent, in which order, and what the server owes for it."""

import random
import re
import struct
from dataclasses import dataclass, field

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass(frozen=True)
class Step:
    """`send` bytes; `pause` seconds; `hear` until the server has said something; `half`: close the way out, and read
    on; `deaf`: read no more; `message`: text whose $names stand for what the server has said (`Peer.known`), as a
    WebSocket message."""

    what: str
    data: bytes = b""
    text: str = ""
    seconds: float = 0.0


@dataclass
class Case:
    """`steps`, then what `owes` says, then the client `leaves`.

    owes: "answer", an HTTP answer or the end; "word", of a WebSocket: an event, a refusal, or the end, and after it
    what is asked for by `sentinel` (None: nothing) or the end; "end": the server ends the connection by itself; "":
    nothing.
    leaves: "close" (with a frame), "fin", "reset".
    """

    dialect: str
    number: int
    kind: str
    steps: list[Step] = field(default_factory=list)
    owes: str = "word"
    leaves: str = "close"
    sentinel: str | None = None
    closes: int | None = None  # the close code that it sends, which comes back

    def send(self, data: bytes) -> "Case":
        """Bytes as they are."""
        self.steps.append(Step("send", data))
        return self

    def message(self, text: str) -> "Case":
        """A text message."""
        self.steps.append(Step("message", text=text))
        return self

    def pause(self, seconds: float) -> "Case":
        """Wait."""
        self.steps.append(Step("pause", seconds=seconds))
        return self

    def hear(self) -> "Case":
        """Wait for the server's first word."""
        self.steps.append(Step("hear"))
        return self

    def split(self, rng: random.Random, pieces: int) -> "Case":
        """What is sent is cut into pieces at random places, each sent on its own."""
        cut: list[Step] = []
        for step in self.steps:
            if step.what != "send" or len(step.data) < 2:
                cut.append(step)
                continue
            places = sorted(rng.sample(range(1, len(step.data)), min(pieces, len(step.data) - 1)))
            for begin, end in zip([0, *places], [*places, len(step.data)]):
                cut += [Step("send", step.data[begin:end]), Step("pause", seconds=0.0)]
        self.steps = cut
        return self

    def told(self) -> str:
        """For a failure: who it was, and all of its bytes."""
        lines, sent = [f"{self.dialect} number {self.number}, kind {self.kind}, leaves by {self.leaves}"], b""
        for step in [*self.steps, Step("")]:
            if step.what == "send" or (step.what == "pause" and not step.seconds):
                sent += step.data
                continue
            lines += [f"  send {shortened(sent)}"] if sent else []
            sent = b""
            lines += [f"  {step.what} {step.text or step.seconds!r}"] if step.what else []
        return "\n".join(lines)


def shortened(data: bytes) -> str:
    """Bytes as Python writes them, what is repeated only once."""
    return re.sub(r"(.{1,60}?)\1{9,}", lambda m: f"{m[1]}{{{len(m[0]) // len(m[1])} times}}", f"{data!r}")[:6000]


def random_of(dialect: str, seed: int, number: int) -> random.Random:
    """The chance of one case: its own, whatever ran before."""
    return random.Random(f"{dialect} {seed} {number}")


def frame(code: int, data: bytes = b"", fin: bool = True, mask: bytes | None = b"\x11\x22\x33\x44", bits: int = 0,
          length: int | None = None) -> bytes:  # fmt: skip
    """A WebSocket frame as a client sends it; `length`: the one that is claimed; `mask` None: without."""
    size = len(data) if length is None else length
    masked = 0 if mask is None else 0x80
    head = bytes([(0x80 if fin else 0) | bits << 4 | code])
    if size < 126:
        head += bytes([masked | size])
    elif size < 2**16:
        head += bytes([masked | 126]) + struct.pack(">H", size)
    else:
        head += bytes([masked | 127]) + struct.pack(">Q", size % 2**64)
    if mask is None:
        return head + data
    whole = (mask * (len(data) // 4 + 1))[: len(data)]
    mixed = (int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")).to_bytes(len(data), "big")
    return head + mask + mixed


def in_bytes(words: str) -> bytes:
    """A message of text in frames of one byte each."""
    data = words.encode("utf-8", "replace")
    last = len(data) - 1
    return b"".join(frame(0 if at else TEXT, data[at : at + 1], fin=at == last) for at in range(len(data)))


def text(words: str) -> bytes:
    """A text message of one frame."""
    return frame(TEXT, words.encode("utf-8", "surrogatepass"))


def request(method: str, target: str, headers: list[tuple[str, str]] | None = None, body: bytes = b"",
            version: str = "HTTP/1.1") -> bytes:  # fmt: skip
    """An HTTP request as bytes."""
    lines = [f"{method} {target} {version}", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers or [])]
    if body and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers or []):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def upgrade(target: str, headers: list[tuple[str, str]] | None = None, key: str = KEY) -> bytes:
    """The opening of a WebSocket."""
    opening = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
    return request("GET", target, [*opening, ("Sec-WebSocket-Key", key), *(headers or [])])
