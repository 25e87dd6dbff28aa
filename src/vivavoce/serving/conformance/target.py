"""The server that is looked at: its address, how it is asked over HTTP, and what is said to it."""

import asyncio
import http.client
import io
import json
import os
import ssl
import time
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np

from vivavoce.audio import read
from vivavoce.errors import RequestError
from vivavoce.serving.conformance.rules import Full, NotSupported, NotThere, Skipped, Wrong, shown
from vivavoce.serving.conformance.shapes import faults
from vivavoce.serving.sound_formats import bytes_of

RATE = 24_000
NO_KEY = "the key does not open it, or there is none"
PROTOCOLS = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
TAILS = ("/api/chat", "/v1/realtime", "/v1/live/sessions", "/v1")  # of an address that names one dialect's place
ERROR = {"error": {"message": str, "type": str, "?param": str, "?code": (str, int)}}
OWN_QUESTION = Path(__file__).with_name("question.flac")  # "three plus four", in the voice of the model mini
PREFERRED = {  # what a model is needed for -> the names that are tried first where a server lists many
    "realtime": ("gpt-realtime", "gpt-realtime-mini"),
    "live": ("gpt-live-1",),
    "speech": ("gpt-4o-mini-tts", "tts-1"),
    "transcription": ("gpt-4o-mini-transcribe", "whisper-1"),
    "chat": ("gpt-audio", "gpt-audio-mini"),
}


@dataclass
class Answer:
    """A reply over HTTP; names of headers are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def media(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower()

    def json(self) -> Any:
        """The body as JSON; `Wrong` where it is none."""
        if self.media != "application/json":
            raise Wrong(f"the content type is {shown(self.media)}, application/json is expected")
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Wrong(f"the body is no JSON: {error}") from error

    def problem(self) -> dict[str, Any]:
        """The error of a refusal; `Wrong` where it has not OpenAI's form."""
        if self.status >= 500 and self.status not in (501, 503):
            raise Wrong(f"answers {self.status}: {shown(self.body[:80].decode(errors='replace'))}")
        if found := faults(self.json(), ERROR):
            raise Wrong(f"the {self.status} has not OpenAI's form: {found[0]}")
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error

    def good(self) -> "Answer":
        """The answer itself where it is one; else the finding that its status stands for."""
        if 200 <= self.status < 300:
            return self
        error = self.routed().problem()
        words = f"{error.get('code') or error['type']}: {error['message']}"
        if self.status in (401, 403):
            raise Skipped(f"{NO_KEY}: {words}")
        if self.status in (429, 503):
            raise Full(words)
        raise NotSupported(words)

    def names_a_model(self) -> bool:
        """Whether a 404 is about the model that was asked for, and not about the route."""
        return b"model" in self.body and b'"error"' in self.body

    def routed(self, *words: bytes) -> "Answer":
        """The answer itself, unless it says that there is no such route: a 404 about no model and none of `words`."""
        if self.status in (404, 405, 501) and not self.names_a_model() and not any(word in self.body for word in words):
            raise NotThere(f"answers {self.status}")
        return self

    def refused(self, *statuses: int) -> str:
        """What a refusal that must come says; `Wrong` where it does not come, or in another form."""
        if self.status == 429:
            raise Full("too many requests")
        if self.status in (401, 403) and self.status not in statuses:
            raise Skipped(f"{NO_KEY}: answers {self.status}")
        if self.status < 400:
            raise Wrong(f"answers {self.status}, a refusal is expected")
        error = self.problem()
        if statuses and self.status not in statuses:
            raise Wrong(f"answers {self.status}, {' or '.join(map(str, statuses))} is expected")
        return f"{self.status} {error.get('code') or error['type']}"


@dataclass
class Target:
    """A server. `base`: its address without a path of any dialect's; `query`: what every WebSocket's address has.

    models: name of the model, "" for all or by what it is for (see `PREFERRED`). timeout: seconds that anything that
    must come is waited for; pace: how many times faster than real time sound is sent where its pace matters. question:
    samples [n] at 24 kHz that are asked.
    """

    base: str
    query: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    models: dict[str, str] = field(default_factory=dict)
    voice: str = "alloy"
    timeout: float = 15.0
    pace: float = 1.0
    insecure: bool = False
    question: np.ndarray = field(default_factory=lambda: question_of())
    listed: list[str] = field(default_factory=list)

    @property
    def secure(self) -> bool:
        """Whether it is asked over TLS."""
        return self.base.startswith("https")

    def context(self) -> ssl.SSLContext | None:
        """How TLS is checked; None without it."""
        if not self.secure:
            return None
        made = ssl.create_default_context()
        if self.insecure:
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        return made

    def headers(self, key: str | None = None) -> dict[str, str]:
        """The key, as clients that are no browsers send it."""
        given = key or self.key
        return {"Authorization": f"Bearer {given}"} if given else {}

    def socket_url(self, path: str, query: dict[str, str] | None = None) -> str:
        """The address of a WebSocket."""
        asked = urlencode({**self.query, **(query or {})})
        return "ws" + self.base.removeprefix("http") + path + (f"?{asked}" if asked else "")

    def model(self, what: str) -> str:
        """The model for that: what the user said, or the best known of those that the server lists, or any name."""
        if what in self.models or "" in self.models:
            return self.models.get(what, self.models.get("", ""))
        known = [name for name in PREFERRED.get(what, ()) if name in self.listed]
        return (known or self.listed or list(PREFERRED.get(what, ())) or ["default"])[0]

    async def http(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, key: str | None = None
    ) -> Answer:
        """One request: a dictionary is sent as JSON, a `Form` as multipart. `Wrong` where no answer comes."""
        given = {**self.headers(key), **(headers or {})}
        if isinstance(body, dict):
            body, given = json.dumps(body).encode(), {"Content-Type": "application/json", **given}
        elif isinstance(body, Form):
            body, given = body.encoded(), {"Content-Type": f"multipart/form-data; boundary={Form.BOUNDARY}", **given}
        return await asyncio.to_thread(self._http, method, path, body, given)

    def _http(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        place = urlsplit(self.base)
        given: dict[str, Any] = {"timeout": self.timeout}
        kind: Any = http.client.HTTPConnection
        if self.secure:
            kind, given = http.client.HTTPSConnection, {**given, "context": self.context()}
        connection = kind(place.netloc, **given)
        end = time.monotonic() + self.timeout
        try:
            connection.request(method, place.path + path, body, headers)
            reply = connection.getresponse()
            parts = []
            while part := reply.read1(1 << 16):
                parts.append(part)
                if time.monotonic() > end:
                    raise Wrong(f"{method} {path}: the answer does not end in {self.timeout:g} s")
            return Answer(reply.status, {n.lower(): v for n, v in reply.headers.items()}, b"".join(parts))
        except TimeoutError:
            raise Wrong(f"{method} {path}: no answer in {self.timeout:g} s") from None
        except (http.client.HTTPException, OSError) as error:
            raise Wrong(f"{method} {path}: no answer: {type(error).__name__} {error}") from error
        finally:
            connection.close()

    async def reach(self) -> None:
        """Raise `VivavoceError` where nobody answers at all: wrong address, no server, no trust in its certificate."""
        place = urlsplit(self.base)
        port = place.port or (443 if self.secure else 80)
        try:
            async with asyncio.timeout(self.timeout):
                _, writer = await asyncio.open_connection(place.hostname, port, ssl=self.context())
                writer.close()
        except ssl.SSLCertVerificationError as error:
            words = f"{self.base}: its certificate is not trusted ({error.verify_message})"
            raise RequestError(f"{words}: --insecure asks all the same") from error
        except ssl.SSLError as error:
            raise RequestError(f"{self.base}: no TLS there ({error.reason}): is it http:// ?") from error
        except TimeoutError:
            raise RequestError(f"{self.base}: nobody answers in {self.timeout:g} s: is the address right?") from None
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
            raise RequestError(f"{self.base}: nobody answers there ({reason})") from error

    async def learn(self) -> None:
        """Find the models that there are, and the name of a voice."""
        try:
            found = (await self.http("GET", "/v1/models")).good().json()
            self.listed = [one["id"] for one in found["data"]]
            able = await self.http("GET", "/v1/capabilities")
            if able.status == 200 and self.voice == "alloy":
                self.voice = able.json()["data"][0]["voices"][0]
        except (Wrong, Full, NotThere, NotSupported, Skipped, LookupError, TypeError, KeyError):
            pass  # the checks of REST say what is wrong with it


class Form:
    """A multipart form: pairs of names and texts, and a file."""

    BOUNDARY = "vivavoce-conformance"

    def __init__(self, fields: list[tuple[str, str]], file: bytes | None = None, name: str = "question.wav"):
        self.fields, self.file, self.name = fields, file, name

    def encoded(self) -> bytes:
        """The body."""
        head = '--{}\r\nContent-Disposition: form-data; name="{}"'
        parts = [f"{head.format(self.BOUNDARY, name)}\r\n\r\n{text}\r\n".encode() for name, text in self.fields]
        if self.file is not None:
            about = f'{head.format(self.BOUNDARY, "file")}; filename="{self.name}"\r\nContent-Type: audio/wav\r\n\r\n'
            parts.append(about.encode() + self.file + b"\r\n")
        return b"".join([*parts, f"--{self.BOUNDARY}--\r\n".encode()])


def target_of(url: str, **options: Any) -> Target:
    """The server at a URL: http, https, ws or wss, with or without the path of a dialect. Raises `RequestError`."""
    text = url if "://" in url else f"http://{url}"
    asked = urlsplit(text)
    try:
        good = asked.scheme in PROTOCOLS and bool(asked.hostname) and (asked.port is None or asked.port > 0)
    except ValueError:
        good = False
    if not good:
        raise RequestError(f"'{url}' is no address of a server: http://HOST:PORT, https://…, ws://… or wss://…")
    path = asked.path.rstrip("/")
    path = next((path.removesuffix(tail) for tail in TAILS if path.endswith(tail)), path)
    return Target(f"{PROTOCOLS[asked.scheme]}://{asked.netloc}{path}", dict(parse_qsl(asked.query, True)), **options)


def wav_of(samples: np.ndarray) -> bytes:
    """Samples [n] at 24 kHz as a wav file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setparams((1, 2, RATE, 0, "NONE", ""))
        made.writeframes(bytes_of(samples))
    return file.getvalue()


def question_of(path: Path = OWN_QUESTION, most: float = 15.0) -> np.ndarray:
    """A recording as samples [n] at 24 kHz, its loudest at half of full scale. Raises `AudioError`, `RequestError`."""
    recording = read(path).mono().resample(RATE)
    if not 0.2 <= recording.duration <= most:
        raise RequestError(f"{path}: {recording.duration:.1f} s of sound: a question of 0.2 to {most:.0f} s is needed")
    samples: np.ndarray = recording.samples[0]
    peak = float(np.abs(samples).max())
    if peak < 1e-3:
        raise RequestError(f"{path}: silence: nobody would answer it")
    return (samples * (0.5 / peak)).astype(np.float32)
