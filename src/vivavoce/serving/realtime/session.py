"""A session of the OpenAI Realtime dialect over one conversation: client events in, server events out.

The transport is somebody else's: `receive` takes a message, and whoever is attached is given events (`attach`). The
session outlives its connection, so that a dropped one can be resumed. On a call sound goes beside the events: `hear`
takes the user's, and a `Voice` plays the model's.

What a full-duplex model makes of the protocol:
- it hears everything at once, and answers when it finds it right; responses are what its own output shows. With
  `create_response: false`, or without turn_detection, what it says is held until `response.create` asks for it;
- push to talk: what is appended is held until `commit`, heard then, and followed by silence;
- `interrupt_response`: the model decides by itself. If it stops while the user speaks, the response is cancelled
  ("turn_detected") and its item cut at what had been played when the user began. A half-duplex model stops at once;
- `conversation.item.delete` and `.truncate` change the history that this server keeps and gives; what a full-duplex
  model has heard and said it remembers all the same, as people do. A half-duplex one forgets what was cut.

`core.end_of_turn`, or the `ends` of half-duplex rows' policy, is the rule of semantic_vad: it is given a turn so far
(Audio) and says whether it is over. Without one semantic_vad is a longer silence, a quarter of the longest wait.

What a model cannot do: acts are refused with the code "unsupported" and the capability's name (texts that cannot be
read, images, a tool that must be called, another speed, text without words). Settings that could not help are taken, so
that clients made for other servers work, and the acknowledging event says in `notices` what has no effect: tools and
instructions stay in the session as given; noise reduction, prompts, reasoning, tracing stay null. session.created
carries all `capabilities`.
"""

import asyncio
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vivavoce.audio import Audio
from vivavoce.serving.access import Visitor
from vivavoce.serving.app import Server
from vivavoce.serving.conversation import Conversation, Frame
from vivavoce.serving.realtime.answers import Answers, tell_cut
from vivavoce.serving.realtime.events import Beta, Spelling, error_event, new_id, read
from vivavoce.serving.realtime.input import HELD, Input
from vivavoce.serving.realtime.items import History, Item, Sound, item_of
from vivavoce.serving.realtime.models import IGNORED, Ends, abilities_of, check_able, notices, policy_of, unsupported
from vivavoce.serving.realtime.replies import Asides
from vivavoce.serving.realtime.responses import Line, Post, Response
from vivavoce.serving.realtime.settings import (
    RESPONSE,
    Invalid,
    beta_param,
    default_session,
    from_beta,
    looks_like_beta,
    merge,
)
from vivavoce.serving.realtime.user import UserSide, UserTurn

SPOKEN = ("response.output_audio.delta", "output_audio_buffer.started")  # events that say that sound has been sent


class Voice(Protocol):
    """What plays the model's sound on a call."""

    cleared: int  # how often it has told that something was cleared

    def line(self, response_id: str) -> Line:
        """Where the sound of a response goes."""

    def clear(self) -> None:
        """Nothing of what waits is played."""


class RealtimeSession:
    """One session. `strict`: refuse what is forgiven otherwise. voice: plays the model's sound (None: it goes into the
    events). `run` must be running for anything to happen."""

    def __init__(
        self, server: Server, conversation: Conversation, visitor: Visitor, spelling: Spelling, strict: bool = False,
        voice: Voice | None = None,
    ):
        self.server, self.core, self.conversation, self.visitor = server, server.core, conversation, visitor
        self.spelling, self.strict, self.voice = spelling, strict, voice
        self.abilities = abilities_of(self.core)
        self.values = default_session(self.abilities.user_transcript)
        self.history, self.conversation_id = History(), new_id("conv")
        self.ended = asyncio.Event()
        self._post: Post | None = None
        policy = getattr(self.core.lockstep.rows, "policy", None)
        self._ends: Ends | None = getattr(self.core, "end_of_turn", None) or getattr(policy, "ends", None)
        self.user = UserSide(
            self.post, self.history, conversation, lambda: self.values["audio"]["input"]["turn_detection"],
            self._wanted, self._committed, self._judge if self._ends is not None else None,
        )
        now, half = self.core.clock.now, self.abilities.half_duplex
        self.answers = Answers(
            conversation, self.user, now, self._response, self._unasked, self._interruptible, self._over, half
        )
        self.input = Input(conversation, "audio/pcm", lambda: self._turn_rules() is None)
        self.asides = Asides(self.core, self.history, self.abilities, lambda: self.input.kind, self._spawn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn_ends = False  # once what was given is heard, the turn is over
        self._spelled = self._spoken = self._warned = self._expiring = False
        self._dropped, self._dropped_told = 0, 0.0
        self._idle_at: float | None = None
        self._input_tokens = [0, 0]  # text, audio, since the last response
        self._rules_changed()
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "output_audio_buffer.clear": self._clear_output,
            "conversation.item.create": self._item_create,
            "conversation.item.delete": self._item_delete,
            "conversation.item.retrieve": self._item_retrieve,
            "conversation.item.truncate": self._item_truncate,
            "response.create": self._response_create,
            "response.cancel": self._response_cancel,
        }

    # -- life --

    def attach(self, post: Post, resumed: float | None = None, missed: int = 0) -> None:
        """`post` gets the events from here on; `resumed`: seconds since the connection before was lost, in which
        `missed` frames were said to nobody."""
        self._post = post
        self.greet(post)
        if self.spelling.name == "beta" and resumed is None:
            talk = {"id": self.conversation_id, "object": "realtime.conversation"}
            self.post({"type": "conversation.created", "conversation": talk})
        if resumed is not None:
            self.answers.lost()
            self.post({
                "type": "vivavoce.session.resumed", "gap_ms": round(1000 * resumed), "missed_frames": missed,
                "items": [item.id for item in self.history],
            })  # fmt: skip

    def greet(self, post: Post) -> None:
        """Tell `post` of the session, as it is. A call cannot be resumed, so that it has no token for it."""
        token = {} if self.voice else {"resume_token": self.conversation.token}
        vendor = {**token, "capabilities": self.abilities.told()}
        spelled = self.spelling.spell({"type": "session.created", "session": self.wire(), **vendor})
        post({"event_id": new_id("event"), **(spelled or {})})

    def detach(self) -> None:
        """The connection is gone: what was being said is cut at what was heard, nothing is sent any more."""
        self.answers.stop("client_cancelled")
        if self.user.turn is not None:
            self.user.commit()
        self.asides.cancel_all()
        self._post = None

    async def run(self) -> None:
        """Until the conversation is closed; `ended` is set then."""
        try:
            async for frame in self.conversation.frames():
                try:
                    self.frame(frame)
                except Exception as error:  # a fault here must not end what the model and the user are saying
                    traceback.print_exc()
                    self._fault(error, None)
        finally:
            self.conversation.close()
            for task in self._tasks:
                task.cancel()
            self.ended.set()

    def post(self, event: dict[str, Any]) -> None:
        """Send an event of GA's, spelled as the client expects it."""
        if self._post is None:
            return
        self._spoken = self._spoken or event["type"] in SPOKEN
        spelled = self.spelling.spell(event)
        if spelled is not None:
            self._post({"type": spelled["type"], "event_id": new_id("event"), **spelled})

    def receive(self, message: Any) -> None:
        """A client's message: the text of one event. Whatever it holds, the session goes on."""
        self.conversation.touched = self.core.clock.now()
        event_id = None
        try:
            event = read(message)
            event_id = event.get("event_id")
            self._handlers[event["type"]](event)
        except Invalid as invalid:
            invalid.event_id = invalid.event_id or event_id
            invalid.param = beta_param(invalid.param) if self.spelling.name == "beta" else invalid.param
            self.post(error_event(invalid))
        except Exception as error:
            traceback.print_exc()
            self._fault(error, event_id)

    def _fault(self, error: Exception, event_id: str | None) -> None:
        fault = Invalid("internal_error", f"a fault of the server's: {type(error).__name__}", kind="server_error")
        fault.event_id = event_id
        self.post(error_event(fault))

    def wire(self) -> dict[str, Any]:
        """The session object, as it is in force."""
        clock, settings = self.core.clock, self.core.settings
        left = (self.conversation.began + settings.session - clock.now()) / clock.speed
        ids = {"id": self.conversation.id, "expires_at": int(time.time() + left)}
        if self.values["type"] == "transcription":
            audio = {"input": self.values["audio"]["input"]}
            kind = {"type": "transcription", "object": "realtime.transcription_session"}
            return {**kind, **ids, "include": self.values["include"], "audio": audio}
        kind = {"type": "realtime", "object": "realtime.session"}
        rest = {name: value for name, value in self.values.items() if name not in ("type", "temperature")}
        if self.spelling.name == "beta":
            rest["temperature"] = self.values["temperature"]
        return {**kind, **ids, "model": self.core.name, **rest}

    # -- what the model and the user do --

    def frame(self, frame: Frame) -> None:
        """One frame of the conversation."""
        self.user.frame(frame)
        self.input.go_on()
        heard = self.input.heard(self.user.heard.position(frame))
        if heard:
            self.user.heard_all()
            if self._turn_ends:
                self._turn_ends = False
                self._tell_row("end_turn")
        if self.values["type"] == "realtime":
            self.answers.frame(frame, waiting=not heard)
            self._idle(frame)
        self._tell_dropped()
        self._tell_expiry()

    def _idle(self, frame: Frame) -> None:
        if self.user.turn is not None or self.answers.response is not None:
            self._idle_at = None
        elif self._idle_at is not None and self.core.clock.now() >= self._idle_at:
            self._idle_at = None
            self.user.timed_out((self._turn_rules() or {}).get("idle_timeout_ms", 0) / 1000)
            self.answers.ask(self._response())

    def _tell_dropped(self) -> None:
        dropped, now = self.conversation.counts.dropped, self.core.clock.now()
        if dropped > self._dropped and now - self._dropped_told > 1.0:
            lost = 1000 * (dropped - self._dropped) / self.conversation.sample_rate
            self._dropped, self._dropped_told = dropped, now
            words = "input came faster than it can be heard, the oldest was dropped: send it at the pace of speech"
            self.post({"type": "vivavoce.input_dropped", "dropped_ms": round(lost), "message": words})

    def _tell_expiry(self) -> None:
        settings = self.core.settings
        left = self.conversation.began + settings.session - self.core.clock.now()
        if left <= settings.warn and not self._expiring:
            self._expiring = True
            words = f"this session ends in {left:.0f} s, having lasted {settings.session:.0f} s: open another one"
            expiring = {"expires_in_seconds": round(left, 1), "message": words}
            self.post({"type": "vivavoce.session.expiring", "code": "session_expiring", **expiring})

    def _judge(self, turn: UserTurn) -> None:
        """Ask the semantic rule whether the turn is whole; a later pause asks again."""
        ends, paused = self._ends, turn.paused
        assert ends is not None
        so_far = Audio(self.user.sound(turn.start).take()[None], self.conversation.sample_rate)

        async def ask() -> None:
            loop = asyncio.get_running_loop()
            whole = float(await loop.run_in_executor(self.core.workers, ends, so_far)) >= 0.5
            if turn.paused == paused:
                turn.whole = whole

        self._spawn(ask())

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _committed(self, item: Item) -> None:
        self.answers.discard(whole_only=self._turn_rules() is not None)
        if item.sound is not None:
            frames = item.sound.samples / self.conversation.frame_size
            self._input_tokens[1] += round(frames * self.abilities.codebooks)
        else:
            self._input_tokens[0] += len(item.text.split())

    def _over(self, response: Response) -> None:
        rules = self._turn_rules() or {}
        if response.item is not None and rules.get("idle_timeout_ms"):
            now = self.core.clock.now()
            self._idle_at = now + response.played.ahead(now) + rules["idle_timeout_ms"] / 1000

    def _turn_rules(self) -> dict[str, Any] | None:
        return self.values["audio"]["input"]["turn_detection"]

    def _unasked(self) -> bool:
        return bool((self._turn_rules() or {}).get("create_response"))

    def _interruptible(self) -> bool:
        return bool((self._turn_rules() or {}).get("interrupt_response"))

    def _wanted(self) -> bool | None:
        if self.values["audio"]["input"]["transcription"] is None:
            return False
        return True if self.abilities.user_transcript else None

    # -- session --

    def _update(self, event: dict[str, Any]) -> None:
        update = event["session"]
        if not self._spelled and self.spelling.name == "ga" and looks_like_beta(update):
            self.spelling = Beta()
        self._spelled = True
        self.post({"type": "session.updated", "session": None, **self.configure(update)} | {"session": self.wire()})

    def configure(self, update: dict[str, Any]) -> dict[str, Any]:
        """Change the session; returns what the event that acknowledges it is to say besides. Raises `Invalid`."""
        if self.spelling.name == "beta":
            update = from_beta(update)
        return self.apply(update)

    def apply(self, update: dict[str, Any]) -> dict[str, Any]:
        """`configure` in GA's spelling."""
        before, after, name = self.values, merge(self.values, update), self.core.name
        if self._spoken and after["audio"]["output"]["voice"] != before["audio"]["output"]["voice"]:
            words = "Cannot update a conversation's voice once there is sound of it."
            raise Invalid("cannot_update_voice", words, "session.audio.output.voice")
        if after["type"] != before["type"] and len(self.history):
            raise Invalid("invalid_value", "a session's type is chosen before anything is said", "session.type")
        check_able(after, self.abilities, name, "session")
        found = notices(update, self.abilities, name, "session")
        after |= dict.fromkeys([one for one in IGNORED if one != "temperature"])
        after["audio"]["input"]["noise_reduction"] = None
        self.values = after
        inputs = after["audio"]["input"]
        self.input.change(inputs["format"]["type"])
        if inputs["turn_detection"] != before["audio"]["input"]["turn_detection"]:
            self._rules_changed()
        if after["instructions"] != before["instructions"] and self.abilities.follows:
            words = after["instructions"]
            self.conversation.command(lambda rows, row: rows.instruct(row, words))
        return {"notices": found} if found else {}

    def _rules_changed(self) -> None:
        self.conversation.rules = self.user.rules()
        self.core.lockstep.rules(self.conversation)
        if self.abilities.half_duplex:
            rules, ends = self._turn_rules(), self._ends
            self.conversation.command(
                lambda rows, row: rows.set_policy(row, policy_of(rows.policy_of(row), rules, ends, HELD))
            )
        if self._turn_rules() is None:
            self.user.clear()
        self.input.mode_changed()

    def _tell_row(self, method: str) -> None:
        """Have half-duplex rows do something for this one."""
        self.conversation.command(lambda rows, row: getattr(rows, method, lambda row: None)(row))

    # -- input --

    def hear(self, samples: np.ndarray) -> None:
        """The user's sound on a call: samples [n] float32 at the conversation's rate."""
        self.conversation.touched = self.core.clock.now()
        self.input.hear(samples)

    def _append(self, event: dict[str, Any]) -> None:
        if self.voice is not None:
            words = "on a call sound comes by the microphone's track: what is appended would be heard amid it"
            raise Invalid("append_not_supported", words, "type")
        self.input.append(event["audio"])

    def _commit(self, event: dict[str, Any]) -> None:
        self.history.room()
        self.input.room(0)
        self.input.committed()
        self._turn_ends = True
        if self._turn_rules() is not None:
            self.user.commit()
            return
        sound, samples = Sound(self.conversation.sample_rate), self.input.held()
        sound.add(samples)
        self.user.add(Item("message", "user", sound=sound, transcribed=False), heard=False)
        self.input.give(samples)

    def _clear(self, event: dict[str, Any]) -> None:
        self.user.heard.cleared += self.input.clear()
        self.user.clear()
        self._tell_row("clear")
        self.post({"type": "input_audio_buffer.cleared"})

    def _clear_output(self, event: dict[str, Any]) -> None:
        response, before = self.answers.response, self.voice.cleared if self.voice else 0
        if self.voice is not None:
            self.answers.hush()
        if response is not None:
            self.answers.stop("client_cancelled")
        if self.voice is not None:
            self.voice.clear()
        if self.voice is None or self.voice.cleared == before:
            self.post({"type": "output_audio_buffer.cleared", "response_id": response.id if response else ""})

    # -- items --

    def _item_create(self, event: dict[str, Any]) -> None:
        self.history.room()
        item = item_of(event["item"], self.input.kind, self.conversation.sample_rate)
        self.input.room(item.sound.samples if item.sound is not None else 0)
        name, after = self.core.name, event.get("previous_item_id")
        if item.kind != "message":
            if not (self.abilities.tools or self.abilities.reads):
                raise unsupported(name, "tools", "item", "it calls no functions, and takes no results of them")
        elif item.sound is not None:
            if item.role != "user" or item.parts:
                raise unsupported(name, "text_input", "item.content", "it hears a user's audio, and nothing else")
        elif not self.abilities.reads:
            raise unsupported(name, "text_input", "item.content", "it hears, and cannot read: send input_audio")
        self.user.add(item, committed=False, after=after, heard=False)
        if item.sound is not None:
            self._turn_ends = True
            self.input.give(item.sound.take())
        elif self.abilities.reads:
            role, text = (item.role, item.text) if item.kind == "message" else ("tool", item.fields)
            self.conversation.command(lambda rows, row: rows.read(row, role, text))

    def _item_delete(self, event: dict[str, Any]) -> None:
        item = self.history.find(event["item_id"], "item_delete_invalid_item_id")
        response = self.answers.response
        if response is not None and response.item is item:
            self.answers.stop("client_cancelled")
        self.history.remove(item)
        self.post({"type": "conversation.item.deleted", "item_id": item.id})

    def _item_retrieve(self, event: dict[str, Any]) -> None:
        item = self.history.find(event["item_id"], "item_retrieve_invalid_item_id")
        side = "input" if item.role == "user" else "output"
        kind = self.values["audio"][side]["format"]["type"]
        self.post({"type": "conversation.item.retrieved", "item": item.wire(audio=kind)})

    def _item_truncate(self, event: dict[str, Any]) -> None:
        item = self.history.find(event["item_id"], "item_truncate_invalid_item_id")
        end = int(event["audio_end_ms"])
        if item.role != "assistant" or item.sound is None:
            raise Invalid("invalid_value", "Only audio of the model's can be truncated.", "item_id")
        if event.get("content_index") not in (None, 0):
            raise Invalid("invalid_value", "content_index: an answer has one part, 0", "content_index")
        if self.strict and not 0 <= end <= item.sound.ms:
            words = f"Audio content of {item.sound.ms:.0f}ms is already shorter than {end}ms"
            raise Invalid("invalid_value", words, "audio_end_ms")
        done = item.truncate(end, "client")
        self.conversation.note("truncated", item=item.id, seconds=done / 1000, source="client")
        where = {"item_id": item.id, "content_index": 0, "audio_end_ms": done}
        self.post({"type": "conversation.item.truncated", **where})
        response = self.answers.response
        if response is not None and response.item is item:  # nobody hears the rest of it
            self.answers.stop("turn_detected" if self.user.turn is not None else "client_cancelled", known=True)
        if item is [one for one in self.history if one.role == "assistant"][-1]:
            tell_cut(self.conversation, done / 1000, "client")

    # -- responses --

    def _response(self, options: dict[str, Any] | None = None, aside: bool = False) -> Response:
        options = options or {**self.values, "metadata": None}
        response = Response(
            self.post, options, self.conversation.sample_rate, self.conversation.frame_size, self.abilities.codebooks,
            self.core.clock.now, None if aside else self.history, None if aside else self.conversation_id,
            self.voice.line if self.voice else None,
        )
        if not aside:
            (response.input_text_tokens, response.input_audio_tokens), self._input_tokens = self._input_tokens, [0, 0]
        return response

    def _response_create(self, event: dict[str, Any]) -> None:
        given = event.get("response") or {}
        if self.values["type"] == "transcription":
            raise Invalid("invalid_value", "a transcription session has no responses", "type")
        if self.spelling.name == "beta":
            given = from_beta(given, "response")
        options = merge({**self.values, "conversation": "auto", "metadata": None}, given, RESPONSE, "response")
        check_able(options, self.abilities, self.core.name, "response")
        voice = options["audio"]["output"]["voice"]
        if self._spoken and voice != self.values["audio"]["output"]["voice"]:
            words = "Cannot update a conversation's voice once there is sound of it."
            raise Invalid("cannot_update_voice", words, "response.audio.output.voice")
        found = notices(given, self.abilities, self.core.name, "response")
        extra = {"notices": found} if found else {}
        if options["conversation"] == "none":
            self.asides.answer(self._response(options, aside=True), options, given.get("input"), extra)
            return
        if given.get("input") is not None:
            words = "an answer in the conversation is to all of it: give input with conversation 'none'"
            raise unsupported(self.core.name, "input", "response.input", words)
        if self.answers.response is not None:
            words = f"Conversation already has an active response in progress: {self.answers.response.id}."
            raise Invalid("conversation_already_has_active_response", words)
        self.answers.ask(self._response(options), **extra)

    def _response_cancel(self, event: dict[str, Any]) -> None:
        asked, response = event.get("response_id"), self.answers.response
        if self.asides.cancel(asked):
            return
        if response is None or asked not in (None, response.id):
            raise Invalid("response_cancel_not_active", "Cancellation failed: no active response found")
        self.answers.stop("client_cancelled")
