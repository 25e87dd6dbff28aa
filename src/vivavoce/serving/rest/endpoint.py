"""One HTTP request from its key to its last byte: what all endpoints of REST share."""

import asyncio
import json
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vivavoce.serving.access import Denied, Visitor
from vivavoce.serving.app import Server, problem
from vivavoce.serving.rest.history import Answer, Kept
from vivavoce.serving.rest.jobs import Job, Jobs, RestLimits
from vivavoce.serving.rest.replies import tasks_of
from vivavoce.serving.rest.requests import Body, Fields, Gone, Held, Problem, problem_of

DONE = b"data: [DONE]\n\n"
SSE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
LIMITS = RestLimits()


class Rest:
    """What the endpoints share: the server, its jobs, the answers that can be referred to."""

    def __init__(self, server: Server, limits: RestLimits | None = None):
        self.server, self.core, self.limits = server, server.core, limits or LIMITS
        self.names = (self.core.name, getattr(self.core.model, "name", self.core.name))
        self.jobs = Jobs(server.core, self.limits)
        self.held = Held(self.limits.held)
        self.kept = server.kept = Kept(self.limits.kept, self.limits.keep, self.limits.kept_sound)
        self.created = int(time.time())

    def answer(self, *asked: Any) -> Answer | None:
        """An answer that a chat goes on from, as `Kept.find` has it; another server at this address may have given
        it."""
        return self.kept.find(*asked) or self.server.find_answer(*asked)

    def check_model(self, fields: Fields) -> str:
        """The model that a request names, which must be the one that is served."""
        name = fields.words("model")
        if name not in self.names:
            message = f"there is no model '{name:.100}' here: there is '{self.core.name}'"
            raise Problem(404, "model_not_found", message, "model")
        return name

    def check_task(self, task: str, kind: str) -> None:
        """Raise `Problem` where the model lacks a task of `reply`, or does not do it from `kind`, audio or text."""
        has = tasks_of(self.core.model)
        if task not in has:
            known = ", ".join(has) or "no task of reply"
            raise Problem(400, f"no_task_{task}", f"{self.core.name} lacks the task '{task}': it has {known}", "model")
        if kind not in has[task]:
            takes = " or ".join(has[task])
            message = f"{self.core.name} takes {takes} for the task '{task}', no {kind}"
            raise Problem(400, f"no_{kind}_input", message)

    def check_voice(self, fields: Fields, required: bool = False) -> None:
        """The voice that a request names: the model's own, called `default` or as the model."""
        voice = fields.get("voice")
        if isinstance(voice, dict):
            voice = voice.get("id")
        if voice is None and not required:
            return
        if voice is None:
            raise fields.missing("voice")
        if voice not in ("default", *self.names):
            raise fields.wrong("voice", "unknown_voice", f"{self.core.name} has one voice, its own: say 'default'")


Run = Callable[[Rest, Body, Visitor], Awaitable[Response]]


class Endpoint:
    """`run(rest, body, visitor)` as an ASGI application; bodies of at most `limit` bytes."""

    def __init__(self, rest: Rest, run: Run, limit: int):
        self.rest, self.run, self.limit = rest, run, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in, answer, or refuse."""
        request = Request(scope, receive)
        body = Body(request, self.limit, self.rest.held)
        try:
            visitor = self.rest.server.visit(request, "rest")
            with self.rest.jobs.place(visitor):
                response = await self._answer(body, visitor)
                await response(scope, receive, send)
        except (Problem, Denied) as refused:
            response = await refusal(refused, body)
            await response(scope, receive, send)
        except Gone:
            return
        finally:
            body.release()

    async def _answer(self, body: Body, visitor: Visitor) -> Response:
        try:
            return await self.run(self.rest, body, visitor)
        except Gone:
            raise
        except Exception as error:
            return await refusal(error, body)


async def refusal(error: Exception, body: Body) -> Response:
    """An error as a response. One that is a fault of ours goes to the server's log, and the client hears of no more."""
    told = told_of(error)
    await body.drain()
    return problem(told.status, told.code, str(told), told.param, told.retry_after)


def told_of(error: Exception) -> Problem:
    """What the client hears of an error."""
    told = problem_of(error)
    if told is None:
        traceback.print_exception(error)
        told = Problem(500, "server_error", "the reply failed by a fault of the server: its log says which")
    return told


def sse(event: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


class Streamed(StreamingResponse):
    """What a job gives, as it gives it; the job is left when the client goes.

    events: whether these are server-sent events, which can say that something went wrong; a file that is not whole ends
    with its connection.
    """

    def __init__(
        self, body: Body, job: Job, first: Any, media_type: str, patience: float, events: bool = False,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(iter(()), 200, {**(SSE if events else {}), **(headers or {})}, media_type)
        self.incoming, self.job, self.first, self.patience, self.events = body, job, first, patience, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the client stays for."""
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(self.incoming.left())
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self.job.leave()
            sending.cancel()
            gone.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        item = self.first
        while item is not None:
            if not await self._put(send, item):
                return
            try:
                item = await self.job.take()
            except Exception as error:
                told = told_of(error)
                if not self.events:
                    return
                error_event = {"message": str(told), "type": "server_error", "param": told.param, "code": told.code}
                await self._put(send, sse({"error": error_event}))
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, send: Send, data: bytes) -> bool:
        """Whether the client took the bytes in time."""
        try:
            async with asyncio.timeout(self.patience):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            return False
        return True
