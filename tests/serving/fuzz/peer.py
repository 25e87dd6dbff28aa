"""The client that plays a case over a raw socket, and judges what the server made of it."""

import asyncio
import base64
import contextlib
import json
import socket
import struct
from typing import Any

from serving.fuzz.case import CLOSE, Case, Step, frame, text
from serving.fuzz.realtime import pcm
from serving.fuzz.rest import wav

BOUND = 60.0  # seconds for all of a case: the server's own patience is 23, the machine may be slow
CODES = {1000, 1001, 1002, 1003, 1005, 1007, 1008, 1009, 1012, 1013}  # 1011 would be a fault of the server's
STATUSES = {*range(200, 500), 503, 101, 100}


class Fault(AssertionError):
    """What the server should not have done."""


class Peer:
    """One connection; `known` has the names that a case's texts may use."""

    def __init__(self, case: Case, port: int):
        self.case, self.port = case, port
        self.raw, self.messages = bytearray(), list[bytes]()
        self.status: int | None = None
        self.code: int | None = None
        self.ended = False
        self.known = {"$pcm": base64.b64encode(pcm()).decode(), "$wav": base64.b64encode(wav()).decode(),
            "$model": "echo"}
        self._news = asyncio.Event()
        self._body: int | None = None  # where the answer to HTTP is whole

    async def play(self) -> None:
        """All of the case; raises `Fault`."""
        made = socket.socket()
        made.setblocking(False)
        if any(step.what == "deaf" for step in self.case.steps):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
        self.reader, self.writer = await asyncio.open_connection(sock=made)
        reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(BOUND):
                for step in self.case.steps:
                    if step.what == "deaf":
                        reading.cancel()
                    await self._do(step)
                await self._owed()
        except TimeoutError:
            raise Fault(f"nothing came in {BOUND:.0f} s: {self.seen()}") from None
        except (ConnectionError, BrokenPipeError):
            pass  # the server has ended it
        finally:
            await self._leave()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self._judge()

    async def _do(self, step: Step) -> None:
        if step.what == "pause":
            await asyncio.sleep(step.seconds)
        elif step.what == "hear":
            await self.until(lambda: bool(self.messages) or (self.status not in (None, 101)))
        elif step.what == "half":
            self.writer.write_eof()
        elif not self.ended:
            data = step.data
            if step.what == "message":
                words = step.text
                for name, value in self.known.items():
                    words = words.replace(name, value)
                data = text(words)
            self.writer.write(data)
            if not any(one.what == "deaf" for one in self.case.steps):
                await self.writer.drain()

    async def until(self, true: Any) -> None:
        """Until it is so, or the server has ended the connection."""
        while not true() and not self.ended:
            self._news.clear()
            await self._news.wait()

    async def _owed(self) -> None:
        if self.case.owes == "end":
            await self.until(lambda: False)
        elif self.case.owes == "answer":
            await self.until(lambda: self.status == 101 or (self._body is not None and len(self.raw) >= self._body))
        elif self.case.owes == "word":
            await self.until(lambda: bool(self.messages) or self.status not in (None, 101))
            if self.case.sentinel is not None and not self.ended and self.code is None:
                self.writer.write(text(self.case.sentinel))
                await self.until(lambda: self.code is not None or any(b'"sentinel"' in one for one in self.messages))

    async def _leave(self) -> None:
        transport = self.writer.transport
        if self.case.leaves == "close" and not self.ended and self.status == 101:
            self.writer.write(frame(CLOSE, struct.pack(">H", 1000)))
            try:
                async with asyncio.timeout(BOUND):  # it may have gone into a frame that has not ended yet
                    await self.until(lambda: False)
            except TimeoutError:
                raise Fault(f"no end {BOUND:.0f} s after a goodbye: {self.seen()}") from None
        if self.case.leaves == "reset" and (made := transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()

    # -- what comes --

    async def _read(self) -> None:
        try:
            while data := await self.reader.read(65_536):
                self.raw += data
                self._take()
                self._news.set()
        except (ConnectionError, OSError):
            pass
        self.ended = True
        self._news.set()

    def _take(self) -> None:
        if self.status is None:
            end = self.raw.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.raw[:end]).decode("latin-1").split("\r\n")
            self.status = int(head[0].split(" ")[1])
            fields = {name.strip().lower(): value.strip() for name, _,
                value in (line.partition(":") for line in head[1:])}
            if self.status == 101:
                del self.raw[: end + 4]
            elif self.status == 100:
                del self.raw[: end + 4]
                self.status = None
                return self._take()
            elif fields.get("content-length", "").isdigit():
                head_only = self.case.steps and self.case.steps[0].data[:4] == b"HEAD"
                self._body = end + 4 + (0 if head_only or self.status in (204, 304) else int(fields["content-length"]))
            elif self.status in (204, 304):
                self._body = end + 4
            self._chunked = "chunked" in fields.get("transfer-encoding", "")
        if self.status == 101:
            self._frames()
        elif self._body is None and self._chunked and self.raw.endswith(b"0\r\n\r\n"):
            self._body = len(self.raw)

    def _frames(self) -> None:
        while len(self.raw) >= 2:
            size, at = self.raw[1] & 127, 2
            if size >= 126:
                at = 4 if size == 126 else 10
                if len(self.raw) < at:
                    return
                size = int.from_bytes(self.raw[2:at], "big")
            if len(self.raw) < at + size:
                return
            code, data = self.raw[0] & 15, bytes(self.raw[at : at + size])
            del self.raw[: at + size]
            if code == CLOSE:
                self.code = int.from_bytes(data[:2], "big") if len(data) >= 2 else 1005
                if data[2:].startswith(b"keepalive"):  # 1011, and yet it is this side that has not answered
                    self.code = 1001
            elif code in (0, 1, 2):
                self.messages.append(data if len(data) < 4096 else data[:4096])
                self._learn(code, data)
            elif code == 9:
                self.writer.write(frame(10, data))

    def _learn(self, code: int, data: bytes) -> None:
        if code != 1:
            return
        event = json.loads(data, parse_constant=not_json)
        if "item" in event and isinstance(event["item"], dict) and "id" in event["item"]:
            self.known["$user" if event["item"].get("role") == "user" else "$item"] = event["item"]["id"]
        if event.get("type") == "response.created":
            self.known["$response"] = event["response"]["id"]
        if event.get("type") == "error" and event["error"]["code"] in ("internal_error", "server_error",
            "model_failed"):
            self.fault = f"the server says that it has failed: {event}"
            raise Fault(self.fault)

    def _judge(self) -> None:
        if (fault := getattr(self, "fault", None)) is not None:
            raise Fault(fault)
        if self.status is not None and self.status not in STATUSES:
            raise Fault(f"HTTP {self.status}: {bytes(self.raw[:600])!r}")
        if self.code is not None and self.code not in {*CODES, self.case.closes}:
            raise Fault(f"closed with {self.code}: {self.seen()}")
        if self.case.owes == "answer" and (self.status or 0) >= 400 and b"application/json" in self.raw[:600]:
            body = bytes(self.raw).partition(b"\r\n\r\n")[2]
            if body and self._body is not None and len(self.raw) == self._body and not self._chunked:
                error = json.loads(body, parse_constant=not_json).get("error")
                if not (isinstance(error, dict) and error.get("code") and error.get("message")):
                    raise Fault(f"HTTP {self.status} without a code or words: {body!r:.300}")

    def seen(self) -> str:
        """What has come, in short."""
        last = f"{self.messages[-2:]!r:.600}"
        return f"status {self.status}, {len(self.messages)} messages, code {self.code}; last {last}"


def not_json(name: str) -> Any:
    """Python reads NaN and Infinity, others do not."""
    raise Fault(f"the server has sent {name}, which is no JSON")
