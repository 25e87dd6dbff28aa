"""The events of a call: the data channel `oai-events`, bounded in both directions."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from vivavoce.serving.access import Allowance
from vivavoce.serving.realtime.events import error_event, new_id
from vivavoce.serving.realtime.settings import Invalid

LABEL = "oai-events"
MOST_WAITING = 4 * 2**20  # bytes that wait to be sent
BACKLOG = 512  # messages that wait for a session, and events that wait for the channel
LAST_WORDS = 2.0  # seconds for what is on its way when a call ends


class Channel:
    """`post` never waits; `start` says who gets the messages. Before the channel is there, the newest events wait.

    message: bytes that one may have towards the client; rate, burst: messages from it a second, and at once.
    over: called with the code and the words of why the call must end.
    """

    def __init__(self, message: int, rate: float, burst: int, over: Callable[[str, str], None]):
        self.message, self._over = message, over
        self._channel: Any = None
        self._waiting: deque[str] = deque(maxlen=BACKLOG)
        self._backlog: deque[Any] = deque()
        self._on_message: Callable[[Any], None] | None = None
        self._allowance = Allowance(burst, rate, time.monotonic())

    def open(self, channel: Any) -> None:
        """The client has opened a data channel: the first one of this name is taken, others are closed."""
        if channel.label != LABEL or self._channel is not None:
            channel.close()
            return
        self._channel = channel
        channel.on("message", self._receive)
        while self._waiting:
            self._send(self._waiting.popleft())

    def start(self, on_message: Callable[[Any], None]) -> None:
        """Give what has waited, and what comes, to `on_message`."""
        while self._backlog:
            on_message(self._backlog.popleft())
        self._on_message = on_message

    def post(self, event: dict[str, Any]) -> None:
        """Send `event` after those before it. What no message can hold is replaced by words that say so."""
        text = json.dumps(event, separators=(",", ":"))
        if len(text) > self.message:
            words = f"{event['type']} has {len(text)} bytes, a message of this data channel at most {self.message}: "
            fault = Invalid("event_too_big", words + "a WebSocket with ?call_id= gets it whole")
            text = json.dumps({**error_event(fault), "event_id": new_id("event")}, separators=(",", ":"))
        if self._channel is None:
            self._waiting.append(text)
        else:
            self._send(text)

    async def drained(self) -> None:
        """Returns when everything is on its way, or will not go."""
        try:
            async with asyncio.timeout(LAST_WORDS):
                while self._channel is not None and self._is_open() and self._channel.bufferedAmount:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.1)  # for what is between here and there
        except TimeoutError:
            return

    def _is_open(self) -> bool:
        return self._channel.readyState == "open"

    def _send(self, text: str) -> None:
        if not self._is_open():
            return
        self._channel.send(text)
        if self._channel.bufferedAmount > MOST_WAITING:
            self._over("slow_client", "this client does not read what is sent to it")

    def _receive(self, message: Any) -> None:
        now = time.monotonic()
        if self._allowance.left(now) < 0:
            self._over("too_many_messages", "messages come faster than they may: send fewer, and bigger ones")
            return
        self._allowance.spend(1)
        text = message if isinstance(message, str) else None
        if self._on_message is not None:
            self._on_message(text)
        elif len(self._backlog) < BACKLOG:
            self._backlog.append(text)
        else:
            self._over("too_many_messages", "too much was sent before the session began: wait for session.created")
