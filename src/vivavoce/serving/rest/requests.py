"""What a request says, checked: bodies bounded in size and time, fields of the right type, refusals with a code."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from vivavoce.errors import AudioError, RequestError, need
from vivavoce.serving.access import Denied
from vivavoce.serving.admission import Refused
from vivavoce.serving.json_text import parsed
from vivavoce.serving.rest.formats import UnsupportedFormat

IDLE, LONGEST = 20.0, 300.0  # seconds between two pieces of a body, and for all of it
MOST_VALUES = 50_000  # of a JSON body: reading more would keep everybody else waiting
MOST_FIELDS, FIELD = 64, 64 * 1024  # of a form, and bytes of one that is no file


class Problem(Exception):
    """A refusal in OpenAI's form: HTTP status, a code for machines, words for people, the parameter."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: float | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


class Gone(Exception):
    """The client has left: there is nobody to tell."""


def problem_of(error: BaseException, param: str | None = None) -> Problem | None:
    """What a client is told of an error; None for a fault of ours."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Denied):
        return Problem(error.status, error.code, str(error), retry_after=error.retry_after)
    if isinstance(error, Refused):
        return Problem(503, error.code, str(error), retry_after=error.retry_after)
    if isinstance(error, AudioError):
        return Problem(400, "invalid_audio", str(error), param)
    if isinstance(error, UnsupportedFormat):
        return Problem(400, "unsupported_format", str(error), param)
    if isinstance(error, RequestError):
        return Problem(400, "invalid_request", str(error), param)
    return None


@dataclass
class Held:
    """Bytes of all the bodies that are being read or worked on; at most `most`."""

    most: int
    size: int = 0


class Body:
    """The body of a request as it comes; at most `limit` bytes, which `held` counts until `release`."""

    def __init__(self, request: Request, limit: int, held: Held):
        self.request, self.limit, self.held = request, limit, held
        self.taken, self.counted, self.over = 0, 0, False
        self._began = asyncio.get_running_loop().time()

    async def receive(self) -> Message:
        """The next message of ASGI; raises `Problem` for too many bytes or too slow ones, `Gone` where nobody is."""
        left = self._began + LONGEST - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self.request.receive(), max(0.0, min(IDLE, left)))
        except TimeoutError:
            raise Problem(408, "request_timeout", "the body came too slowly: send it at once") from None
        if message["type"] == "http.disconnect":
            raise Gone
        self.taken += len(message.get("body", b""))
        self.over = not message.get("more_body", False)
        if self.taken > self.limit:
            raise self._too_large()
        if self.held.size + self.taken - self.counted > self.held.most:
            raise Problem(429, "too_many_uploads", "too much is being sent at once: try again later", retry_after=10.0)
        self.held.size, self.counted = self.held.size + self.taken - self.counted, self.taken
        return message

    def release(self) -> None:
        """The body is not needed any more."""
        self.held.size, self.counted = self.held.size - self.counted, 0

    def check_size(self) -> None:
        """Raise `Problem` where the header says already that the body is too large."""
        length = self.request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limit:
            raise self._too_large()

    async def drain(self) -> None:
        """Read what is still coming and forget it, so that a client that sends first hears why it was refused."""
        if "expect" in self.request.headers:
            return  # it waits for leave to send
        try:
            async with asyncio.timeout(10.0):
                while not self.over and self.taken < 4 * self.limit:
                    message = await self.request.receive()
                    self.taken += len(message.get("body", b""))
                    self.over = message["type"] == "http.disconnect" or not message.get("more_body", False)
        except TimeoutError:
            return

    async def left(self) -> None:
        """Returns when the client has gone; for after the body."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        self.check_size()
        parts = []
        while not self.over:
            parts.append((await self.receive()).get("body", b""))
        return await asyncio.to_thread(_json_object, b"".join(parts))

    async def form(self) -> dict[str, Any]:
        """The fields of a multipart form: strings, `UploadFile`s; those whose name ends in `[]` as lists."""
        self.check_size()
        need("python_multipart", "serve", "reading uploads")
        if not self.request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise Problem(400, "invalid_content_type", "send multipart/form-data with the recording in 'file'")
        request = Request(self.request.scope, self.receive)
        try:
            form = await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=FIELD)
        except HTTPException as error:
            raise Problem(400, "invalid_form", f"no multipart form that can be read: {error.detail}") from error
        except (KeyError, ValueError) as error:  # of parts without what the format asks for
            raise Problem(400, "invalid_form", f"no multipart form that can be read: {error}") from error
        found: dict[str, Any] = {}
        for name, value in form.multi_items():
            plain = name.removesuffix("[]")
            if plain != name:
                found.setdefault(plain, []).append(value)
            elif plain in found:
                raise Problem(400, "invalid_form", f"'{plain}' is there twice", plain)
            else:
                found[plain] = value
        return found

    def _too_large(self) -> Problem:
        return Problem(413, "request_too_large", f"the body is larger than {self.limit} bytes, the most that is taken")


def _json_object(data: bytes) -> dict[str, Any]:
    if sum(data.count(sign) for sign in (b",", b"[", b"{")) > MOST_VALUES:
        raise Problem(400, "invalid_json", f"the body holds more than {MOST_VALUES} values")
    try:
        found = parsed(data)
    except ValueError as error:
        raise Problem(400, "invalid_json", f"the body is no JSON that can be read: {error}") from error
    if not isinstance(found, dict):
        raise Problem(400, "invalid_json", f"a JSON object is expected, not {type(found).__name__}")
    return found


class Fields:
    """The fields of a request, each asked for once; `done` refuses what nobody has asked for.

    `where` is the path before the names, "audio." for what is in `audio`. A field that is null is not there.
    """

    def __init__(self, values: Mapping[str, Any], where: str = ""):
        self.values, self.where, self._asked = values, where, set[str]()

    def get(self, name: str) -> Any:
        """The value as it is, or None."""
        self._asked.add(name)
        return self.values.get(name)

    def text(self, name: str, most: int = FIELD, required: bool = False) -> str | None:
        """A string of at most `most` characters."""
        value = self.get(name)
        if value is None:
            if required:
                raise self.missing(name)
            return None
        if not isinstance(value, str):
            raise self.wrong(name, "invalid_type", f"a string is expected, not {type(value).__name__}")
        if len(value) > most:
            raise self.wrong(name, "string_too_long", f"{len(value)} characters, at most {most} are taken")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.wrong(name, "invalid_value", "holds half a character (a lone surrogate)") from None
        return value

    def words(self, name: str) -> str:
        """A string that must be there and say something."""
        value = self.text(name, required=True)
        if not value or not value.strip():
            raise self.wrong(name, "empty_string", "is empty")
        return value

    def choice(self, name: str, options: Sequence[str], default: str | None = None) -> str:
        """One of some strings."""
        value = self.text(name)
        if value is None:
            if default is None:
                raise self.missing(name)
            return default
        if value not in options:
            raise self.wrong(name, "unsupported_value", f"'{value:.60}' is not known: there are {', '.join(options)}")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """A number from `low` to `high`; in a form it is written out."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(name, "invalid_value", f"a number from {low:g} to {high:g} is expected")
        return value

    def whole(self, name: str, low: int, high: int, default: int) -> int:
        """A whole number from `low` to `high`."""
        value = self.number(name, low, high, default)
        if value != int(value):
            raise self.wrong(name, "invalid_value", f"a whole number from {low} to {high} is expected")
        return int(value)

    def yes(self, name: str) -> bool:
        """A truth, false where it is not there; in a form `true` or `false`."""
        value = self.get(name)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "invalid_type", "true or false is expected")
        return bool(value)

    def strings(self, name: str) -> list[str]:
        """A list of strings; one string is a list of one."""
        value = self.get(name)
        found = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self.wrong(name, "invalid_type", "a list of strings is expected")
        return found

    def inside(self, name: str) -> "Fields | None":
        """The fields of an object that is a field."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "invalid_type", f"an object is expected, not {type(value).__name__}")
        return Fields(value, f"{self.where}{name}.")

    def only(self, name: str, values: Sequence[Any], why: str, code: str = "unsupported_value") -> None:
        """Refuse a field that asks for what cannot be done: it may be absent, empty, or one of `values`."""
        value = self.get(name)
        if value not in (None, "", [], {}) and value not in values:
            raise self.wrong(name, code, why)

    def free(self, *names: str) -> None:
        """Fields that change nothing about the reply."""
        self._asked.update(names)

    def done(self) -> None:
        """Refuse fields that are not known: a misspelt one would be lost without a word."""
        if unknown := sorted(str(name) for name in self.values if name not in self._asked):
            raise self.wrong(unknown[0][:60], "unknown_parameter", "is not known here: leave it out")

    def wrong(self, name: str, code: str, why: str) -> Problem:
        """A refusal that names the field."""
        return Problem(400, code, f"{self.where}{name}: {why}", f"{self.where}{name}")

    def missing(self, name: str) -> Problem:
        """A refusal of a request that lacks a field."""
        return self.wrong(name, "missing_required_parameter", "is missing")
