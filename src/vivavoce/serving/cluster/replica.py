"""One replica: the server of `vivavoce talk`, whole, inside Ray Serve; and what it tells the others."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Message, Scope

from vivavoce.errors import need
from vivavoce.serving.access import Access, Key, Limits, Who
from vivavoce.serving.admission import PROMISE
from vivavoce.serving.app import Server, create_app
from vivavoce.serving.cluster import PURPOSE, running
from vivavoce.serving.cluster.figures import ClusterFigures
from vivavoce.serving.cluster.handover import Guests, Handover, Line
from vivavoce.serving.cluster.names import tag_of
from vivavoce.serving.cluster.sealed import SealedKeys
from vivavoce.serving.cluster.settings import ClusterSettings
from vivavoce.serving.core import Core
from vivavoce.serving.recording import Recorder
from vivavoce.serving.rest.history import Answer
from vivavoce.serving.webrtc.ice import Ice

need("ray", "ray", PURPOSE)
from ray import serve  # noqa: E402

ANSWERS_IN = 3.0  # seconds that other replicas have to tell something
log = logging.getLogger(__name__)


class CallLine:
    """A `Line` by calls of another replica, by Serve's `handle`."""

    def __init__(self, handle: Any, replica: str, call: str, scope: Scope):
        self.handle, self.whose = handle, {"replica": replica, "call": call}
        self._said = handle.options(stream=True).take_over.remote(**self.whose, scope=scope)

    async def begins(self) -> bool:
        """Whether there is a row."""
        try:
            async with asyncio.timeout(ANSWERS_IN):
                return await anext(self._said) is not None
        except BaseException:
            self.hang_up()
            raise

    async def tell(self, messages: list[Message]) -> None:
        """What the client says."""
        if not await self.handle.hear.remote(**self.whose, messages=messages):
            raise ConnectionError("it does not serve this client any more")

    async def said(self) -> AsyncIterator[list[Message]]:
        """What the client is told."""
        async for messages in self._said:
            yield messages

    def hang_up(self) -> None:
        """The call is over."""
        self._said.cancel()


@serve.ingress()
class Replica:
    """A model, its rows and its dialects in a process of its own. What is not of a dialect is called by Serve.

    keys: by the SHA-256 of their secrets. secret: what the replicas' ephemeral keys are sealed with.
    """

    def __init__(self, settings: ClusterSettings, keys: dict[str, Key], secret: str):
        context = serve.get_replica_context()
        self.settings, self.keys, self.secret = settings, keys, secret
        self.name = context.replica_id.unique_id
        self._deployment, self._application = context.deployment, context.app_name
        self._others: dict[str, dict[str, Any]] = {}
        self._known = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __serve_build_asgi_app__(self) -> Any:
        """The application; Serve runs its lifespan, in which the core starts."""
        settings, self._loop = self.settings, asyncio.get_running_loop()
        model = await self._loop.run_in_executor(None, settings.load)
        transcriber = await self._loop.run_in_executor(None, settings.load_transcriber)
        core = Core(model, settings.model, settings.server(), transcriber=transcriber)
        core.tag = tag_of(self.name)
        access = Access(
            self.keys, tuple(settings.origins), Limits(conversations=settings.each), SealedKeys(self.secret),
            self._elsewhere,
        )
        recorder = Recorder(settings.record) if settings.record else None
        ice = Ice.of(settings.host, tuple(settings.ice)).check()
        self.server = Server(core, access, settings.local, settings.drain, self._ready, recorder, ice)
        self._own, self.server.figures = self.server.figures, ClusterFigures(self._ask)
        self.server.find_answer = self._find_answer
        app = create_app(self.server)
        self.guests, self.handover = Guests(app, core), Handover(app, core, self._offer)
        return self.handover

    # -- called by Serve --

    def check_health(self) -> None:
        """Raises once the model has failed, or all has been drained: Serve puts another replica in this one's place."""
        core = self.server.core
        if core.lockstep.failed:
            raise RuntimeError(f"the model has failed: {core.lockstep.failed}")
        if core.stopping and not core.live:
            raise RuntimeError("this replica has been drained")

    def record_replica_metadata(self) -> dict[str, Any]:
        """What routers know of it before it has told anything else."""
        return {"rows": self.server.core.rows}

    def record_routing_stats(self) -> dict[str, Any]:
        """What routers, and the other replicas, are to know."""
        core = self.server.core
        open_here = {name: count for (_, name), count in self.server.access.open.items()}
        return {"vacant": core.vacant, "open": open_here}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the number of replicas is decided by."""
        core = self.server.core
        return {"rows": core.rows, "taken": core.rows - len(core.lockstep.free), "waiting": len(core.queue)}

    # -- called by other replicas --

    async def look(self) -> tuple[str, dict[str, Any]]:
        """(its name, what the pages of figures show of it)."""
        own = self._own
        return self.name, {
            "health": await own.health(), "queue": await own.queue(), "sessions": self.server.core.sessions(),
            "metrics": await own.metrics(),
        }

    def answer(self, *asked: Any) -> Answer | None:
        """An answer that a chat goes on from, as `Kept.find` has it."""
        return self.server.kept.find(*asked) if self.server.kept is not None else None

    async def take_over(self, replica: str, call: str, scope: Scope) -> AsyncIterator[list[Message] | None]:
        """Serve another one's client, as `Guests.serve` has it."""
        if replica == self.name:
            async for messages in self.guests.serve(call, scope):
                yield messages
        else:
            yield None

    def hear(self, replica: str, call: str, messages: list[Message]) -> bool:
        """What another one's client says, as `Guests.hear` has it."""
        return self.guests.hear(call, messages)

    # -- asking the others --

    def _ready(self) -> None:
        running.listen(self._hear)
        self._handle = serve.get_deployment_handle(self._deployment, self._application)
        self._start(self._ask())  # from here on this process's router is told who is there

    def _start(self, work: Any) -> None:
        self._tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(self._tasks.discard)

    def _hear(self, told: dict[str, dict[str, Any]]) -> None:
        """The router, in its thread, has heard who is there."""
        self._loop.call_soon_threadsafe(self._told, told)

    def _told(self, told: dict[str, dict[str, Any]]) -> None:
        """These are there. A replica that was there and is not any more is being stopped."""
        self._others = {name: stats for name, stats in told.items() if name != self.name}
        if self.name in told:
            self._known = True
            self.handover.consider({name: s["vacant"] for name, s in self._others.items() if s.get("vacant", 0) > 0})
        elif self._known and not self.server.core.stopping:
            self._start(self._drain())

    async def _drain(self) -> None:
        await self.server.core.stop(self.settings.drain)
        self.handover.stop()

    def _elsewhere(self, who: Who) -> int:
        """How many conversations somebody has at the other replicas, as they have told. That is a moment old, in which
        an ephemeral key's one conversation may have ended: of such, each replica counts its own."""
        if who[0] == "ephemeral":
            return 0
        count = sum(stats.get("open", {}).get(who[1], 0) for stats in self._others.values())
        return max(0, count - (PROMISE.get() is not None))  # a guest is still counted where it comes from

    async def _offer(self, replica: str, scope: Scope) -> Line | None:
        call = secrets.token_hex(8)
        line = CallLine(self._handle, replica, call, scope)
        try:
            return line if await line.begins() else None
        except Exception as error:
            log.warning("%s could not be asked for a row: %s", replica, error)
            return None

    async def _ask(self) -> dict[str, dict[str, Any]]:
        """What all replicas tell; those that do not answer in time are left out."""
        found = dict([await self.look()])
        with contextlib.suppress(Exception):  # a replica that has just died: the figures are those of the others
            told = await self._handle.broadcast("look").results_async(timeout_s=ANSWERS_IN, return_exceptions=True)
            found.update(each for each in told if isinstance(each, tuple))
        return found

    def _find_answer(self, *asked: Any) -> Answer | None:
        """An answer that another replica has given. Called in a worker's thread."""
        if not self._others:
            return None
        try:
            found = self._handle.broadcast("answer", *asked).results(timeout_s=ANSWERS_IN, return_exceptions=True)
        except Exception:
            log.warning("the other replicas could not be asked for an earlier answer", exc_info=True)
            return None
        return next((answer for answer in found if isinstance(answer, Answer)), None)
