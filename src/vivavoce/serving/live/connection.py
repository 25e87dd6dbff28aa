"""The connections of OpenAI Live: who has which session, and what the client of one WebSocket asks for, obeyed."""

import asyncio
import hmac
import traceback
from collections.abc import Callable
from typing import Any

from starlette.websockets import WebSocket

from vivavoce.errors import VivavoceError
from vivavoce.serving.access import Allowance, Denied, Visitor
from vivavoce.serving.admission import Refused
from vivavoce.serving.app import Server
from vivavoce.serving.conversation import Client
from vivavoce.serving.live import events as live_events
from vivavoce.serving.live.events import Fault, StartConfig
from vivavoce.serving.live.link import Link
from vivavoce.serving.live.session import TAKES, LiveSession

MOST_MESSAGE = 4 * 2**20  # bytes: half a minute of sound is 2 MB


class Left(Exception):
    """The client has closed the connection or lost it: `why` as `LiveSession.lost` takes it."""

    def __init__(self, why: str):
        super().__init__(why)
        self.why = why


class Live:
    """The sessions of one server."""

    def __init__(self, server: Server):
        self.server, self.core = server, server.core
        self.sessions: dict[str, LiveSession] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def open(
        self, visitor: Visitor, config: StartConfig, link: Link, told: Callable[[int, float | None], None]
    ) -> LiveSession:
        """A session for `link`, once a row is free. Raises `Refused`, `Denied`."""
        self.server.access.enter(visitor)
        try:
            client = Client("live", visitor.address, visitor.key)
            conversation = await self.core.open(client, seed=config.seed, told=told)
        except BaseException:
            self.server.access.leave(visitor)
            raise
        session = LiveSession(self.core, conversation, visitor, config, link, self._ended)
        session.recorded = self.server.recorder is not None and self.server.recorder.recording(conversation.id)
        self.sessions[conversation.id] = session
        running = asyncio.create_task(session.run())
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return session

    def resume(self, token: str, visitor: Visitor | None, link: Link) -> LiveSession:
        """The session of a resume token, whose owner `link` becomes; None stands for its own key.

        Raises `Refused` where there is none, or another key's.
        """
        for session in self.sessions.values():
            right = hmac.compare_digest(session.conversation.token.encode(), token.encode())
            if right and (visitor is None or session.visitor.key == visitor.key):
                session.resumed(link)
                return session
        raise Refused("resume_unknown", "there is no session to resume: its time is over, or it never was")

    def _ended(self, session: LiveSession) -> None:
        self.sessions.pop(session.conversation.id, None)
        self.server.access.leave(session.visitor)


class Connection:
    """One WebSocket: messages are read, checked and obeyed until it or the session is over."""

    def __init__(self, live: Live, websocket: WebSocket, most: int):
        self.live, self.websocket, self.core = live, websocket, live.core
        self.link = Link(websocket, most)
        self.visitor: Visitor | None = None
        self.session: LiveSession | None = None
        self.observes = False
        self._opening: asyncio.Task[None] | None = None

    async def run(self, enter: Callable[[], None]) -> None:
        """`enter()` lets the client in or raises; then its messages are obeyed."""
        why = ""
        reading = None
        try:
            enter()
            reading = asyncio.create_task(self._read())
            await asyncio.wait((reading, self.link.sending), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        except Left as left:
            why = left.why
        except (Denied, Refused, Fault) as refusal:
            self._refuse(refusal)
        except Exception:
            self._mistake()
        finally:
            for task in (reading, self._opening):
                if task is not None:
                    task.cancel()
            if self.session is not None:
                self._leave(self.session, why)
        if self.link.code is not None and not self.link.sending.done():
            await asyncio.wait([self.link.sending], timeout=5.0)
        await self.link.end()

    def _leave(self, session: LiveSession, why: str) -> None:
        if self.observes:
            session.observers.discard(self.link)
            session.asked_status.discard(self.link)
            session.asked_stamps.discard(self.link)
        else:
            session.lost(self.link, why or ("closed" if self.link.code is not None else ""))

    def enter(self) -> None:
        """The owner of a session that is to begin, or that goes on."""
        token = self.websocket.query_params.get("resume")
        try:
            self.visitor = self.live.server.visit(self.websocket, "talk")
        except Denied as denied:
            if token is None or denied.code != "key_expired":
                raise  # an ephemeral key need not outlast the conversation that it has begun
        if token is not None:
            session = self.live.resume(token, self.visitor, self.link)
            self.visitor = session.visitor
            self._is_owner(session)

    def observe(self) -> None:
        """Somebody who looks on."""
        self.visitor = self.live.server.visit(self.websocket, "observe")
        session = self.live.sessions.get(self.websocket.path_params["id"])
        if session is None:
            raise Fault("session_not_found", "there is no such session: it is over, or it never was")
        session.attach(self.link)
        self.session, self.observes = session, True
        self._ask_status(session)

    # -- messages --

    async def _read(self) -> None:
        assert self.visitor is not None
        limits, clock = self.visitor.limits, self.core.clock
        messages = Allowance(limits.burst, limits.rate, clock.now())
        while True:
            waits = None if self.session or self._opening else self.core.settings.idle / clock.speed
            try:
                async with asyncio.timeout(waits):
                    message = await self.websocket.receive()
            except TimeoutError:
                words = f"no session.start came in {self.core.settings.idle:.0f} s"
                raise Fault("session_not_started", words) from None
            if message["type"] == "websocket.disconnect":
                raise Left(left(message))
            text = message.get("text")
            if len(text or message.get("bytes") or b"") > min(MOST_MESSAGE, limits.message):
                words = f"a message may have {min(MOST_MESSAGE, limits.message)} bytes: send sound in smaller pieces"
                self.link.refuse(Fault("message_too_big", words, kind="rate_limit_error"), 1009)
                return
            if not messages.take(clock.now()):
                words = f"more than {limits.rate:.0f} messages a second: send sound in larger pieces"
                self.link.refuse(Fault("rate_limit_exceeded", words, kind="rate_limit_error"), 1008)
                return
            self._obey(text)
            await asyncio.sleep(0)  # what comes in one piece may be thousands of messages: others have their turn

    def _obey(self, text: str | None) -> None:
        """Do what a message says, or answer why not."""
        own = None
        try:
            found = live_events.read_event(text)
            own = live_events.id_of(found)
            if found["type"] == "session.start":
                self._start(found, own)
            elif self.session is None:
                self._before(found, own)
            else:
                if self.observes and found["type"] != "session.input_audio.append":
                    self._may_command(self.session)
                self._command(self.session, found, own)
        except Fault as fault:
            self.link.post(live_events.error(fault, own))
        except VivavoceError as fault:
            self.link.post(live_events.error(Fault("invalid_request", str(fault)), own))

    def _start(self, found: dict[str, Any], own: str | None) -> None:
        if self.session is not None or self._opening is not None:
            raise Fault("session_already_started", "the session has been started: session.start comes once")
        try:
            config = live_events.read_start(found, self.core.name)
        except Fault as fault:  # without a session there is nothing to wait for on this connection
            self.link.refuse(fault, 1008, own)
            return
        self._opening = asyncio.create_task(self._open(config, own))

    async def _open(self, config: StartConfig, own: str | None) -> None:
        assert self.visitor is not None
        try:
            session = await self.live.open(self.visitor, config, self.link, self._tell_place)
            self._is_owner(session)
            self._tell_start(session, config, own)
        except (Refused, Denied, Fault) as refusal:
            self._refuse(refusal, own)
        except Exception:
            self._mistake()

    def _tell_start(self, session: LiveSession, config: StartConfig, own: str | None) -> None:
        """That the session has begun, and what of its configuration it has not."""
        session.started(own)
        if session.recorded:
            self.link.post(live_events.info("recorded", "this conversation is recorded by the server"))
        for code, words in config.unmet:
            if code != "store_not_supported" or not session.recorded:
                self.link.post(live_events.info(code, words, own))
        hears, writes = self.core.writes
        if not hears:
            words = f"{self.core.name} does not write down what the user says: there are no input transcripts"
            self.link.post(live_events.info("no_input_transcript", words))
        if not writes:
            words = f"{self.core.name} does not write down what it says: there are no output transcripts"
            self.link.post(live_events.info("no_output_transcript", words))
        if config.instructions is not None and not session.takes("instructions"):
            words = f"{self.core.name} takes no instructions: session.instructions is not used"
            self.link.post(live_events.info("instructions_not_supported", words, own))
        elif config.instructions is not None:
            session.take_text("instructions", config.instructions, own, self.link)

    def _tell_place(self, position: int, eta: float | None) -> None:
        words = f"number {position} in the queue" + ("" if eta is None else f", for about {eta:.0f} s")
        seconds = None if eta is None else round(eta, 1)
        self.link.post(live_events.info("queue", words, position=position, eta_seconds=seconds))

    def _is_owner(self, session: LiveSession) -> None:
        self.session = session
        self._ask_status(session)

    def _ask_status(self, session: LiveSession) -> None:
        if self.websocket.query_params.get("status") == "1":
            session.asked_status.add(self.link)
        if self.websocket.query_params.get("stamps") == "1" and not self.observes:
            session.asked_stamps.add(self.link)

    def _before(self, found: dict[str, Any], own: str | None) -> None:
        """What a client may send before it has a session: sound, which nobody hears, and that it leaves the queue."""
        if self._opening is None:
            raise Fault("session_not_started", f"{found['type']:.80}: session.start comes first")
        if found["type"] == "session.close":
            self.link.post(live_events.info("queue_left", "the queue was left: there is no session", own))
            self.link.close(1000)
        elif found["type"] != "session.input_audio.append":
            raise Fault("session_not_started", f"{found['type']:.80}: wait for session.started")

    def _may_command(self, session: LiveSession) -> None:
        """An observer commands what its own key has begun, with a key that may talk."""
        assert self.visitor is not None
        if "talk" not in self.visitor.scopes or self.visitor.key != session.visitor.key:
            words = "this key may look on: commands are for the key that has begun the session"
            raise Fault("scope_missing", words, kind="permission_error")

    def _command(self, session: LiveSession, found: dict[str, Any], own: str | None) -> None:
        """One event of a session that runs."""
        kind = found["type"]
        match kind.split("."):
            case ["session", "input_audio", "append"]:
                if self.observes:
                    raise Fault("not_the_owner", "sound comes from the session's own connection", "type")
                live_events.check_keys(found, ("type", "event_id", "audio"))
                data = live_events.bytes_of_base64(found)
                if session.config.kind == "audio/pcm" and len(data) % 2:
                    raise Fault("invalid_audio", f"audio: {len(data)} bytes are no 16-bit samples", "audio")
                session.append(data)
            case ["session", "input_audio", "mute" | "unmute" as which]:
                live_events.check_keys(found, ("type", "event_id"))
                session.mute(which == "mute", own)
            case ["session", which, "append"] if which in TAKES:
                session.take_text(which, live_events.read_append(found), own, self.link)
            case ["session", "output_audio", "fixture", "play"]:
                session.play(live_events.read_fixture(found), own)
            case ["session", "update"]:
                live_events.read_update(found)
                session.updated(own)
            case ["session", "close"]:
                live_events.check_keys(found, ("type", "event_id"))
                session.close(own)
            case ["response", *_] | ["decision", *_]:
                owner = f"{kind.split('.')[0]}s"
                raise Fault(f"{owner}_not_supported", f"{kind:.80}: there is no model to delegate to", "type")
            case ["transport", *_]:
                raise Fault("sip_not_supported", f"{kind:.80}: this session is no telephone call", "type")
            case _:
                raise Fault("unknown_event", f"there is no client event '{kind:.80}'", "type")

    def _mistake(self) -> None:
        traceback.print_exc()
        words = "the server has made a mistake: this connection cannot go on"
        self.link.refuse(Fault("server_error", words, kind="server_error"), 1011)

    def _refuse(self, refusal: Denied | Refused | Fault, own: str | None = None) -> None:
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        if isinstance(refusal, Fault):
            code = 1013 if refusal.kind == "rate_limit_error" else 1008
            self.link.refuse(refusal, code, own)
            return
        if isinstance(refusal, Denied):
            kind, code = kinds.get(refusal.status, "invalid_request_error"), 1013 if refusal.status == 429 else 1008
        else:
            kind = "server_error"
            code = {"stopping": 1012, "failed": 1011, "resume_unknown": 1008}.get(refusal.code, 1013)
        self.link.refuse(Fault(refusal.code, str(refusal), kind=kind), code, own)


def left(message: Any) -> str:
    """Why a connection is gone: "closed" by the client, "shutdown" by the server, or "" where it broke.

    A close frame of the client's comes with a reason, even an empty one; what uvicorn makes up itself has none. With a
    code from 4000 on, which is the applications' own, a client says that it comes back.
    """
    code = message.get("code") or 0
    if message.get("reason") is not None or code in (1000, 1001):
        return "" if code >= 4000 else "closed"
    return "shutdown" if code == 1012 else ""
