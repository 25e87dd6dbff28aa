"""Half-duplex models on the frame clock: what has only the verb `reply` becomes conversations in lockstep.

Voice activity finds the user's turn, its audio goes to the model, and what the model replies is given out a frame at a
time, by the clock, never ahead: so it stops as soon as the user breaks in, and what was said is known to the frame.
"""

import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.dialogue.duplex import DuplexOutput, seed_of, whole
from vivavoce.dialogue.reply_row import Question, ReplyRow
from vivavoce.dialogue.reply_stream import ReplyStream
from vivavoce.dialogue.turn_detection import TurnRules, UserTurns
from vivavoce.dialogue.turn_policy import SpokenTurn, TurnPolicy
from vivavoce.errors import AudioError, RequestError

FRAME_SECONDS = 0.08
WORKERS = 4  # replies that are computed at the same time, where nobody says otherwise


class ReplyRows:
    """`rows` conversations in lockstep with a half-duplex `model`: the interface of `vivavoce.dialogue.DuplexRows`.

    The model has the verb `reply` with stream=True, and is given [(role, Audio), …], the user's turn last; `seed` too
    if it takes one. workers: replies that are computed at once, all rows together, each in a thread, as far ahead as it
    gets; 0: in the step itself, as much as a frame needs, which then takes its time and gives the same each time (for
    what is not live). executor: what has `submit(function)`, in place of threads of one's own.

    A reply that fails is an empty turn, its error is in `errors(row)`, and the row goes on.
    """

    def __init__(
        self, model: Any, rows: int, policy: TurnPolicy | None = None, workers: int | None = None, executor: Any = None
    ):
        if not hasattr(model, "reply"):
            raise RequestError(f"{getattr(model, 'name', model)!s:.60} has no verb 'reply'")
        self.model, self.rows = model, whole(rows, "duplex needs at least one row: rows", 1)
        self.sample_rate = int(model.sample_rate)
        self.frame_size = round(FRAME_SECONDS * self.sample_rate)
        self.policy = policy or TurnPolicy()
        self.workers = whole(min(self.rows, WORKERS) if workers is None else workers, "workers", 0)
        self._pools: list[ThreadPoolExecutor] = []
        self._submit: Any = None  # how replies are computed, and how `ends` is asked; None: at once
        self._ask: Any = None
        if executor is not None:
            self._submit = self._ask = executor.submit
        elif self.workers:
            self._pools = [ThreadPoolExecutor(self.workers, "vivavoce-reply"), ThreadPoolExecutor(1, "vivavoce-turns")]
            self._submit, self._ask = (pool.submit for pool in self._pools)
        self._takes_seed = "seed" in _parameters(model.reply)
        self._voice = UserTurns(self.rows, self.sample_rate)
        self._rows = [ReplyRow(self, seed, self.policy) for seed in range(self.rows)]
        for row in range(self.rows):
            self._voice.reset(row, _rules(self.policy))

    # -- as `DuplexRows` --

    @property
    def prompted(self) -> list[int]:
        """Rows that still read their prompt: none, it is read at once."""
        return []

    def step(self, frames: Any, active: Any = None) -> list[DuplexOutput | None]:
        """frames [rows, frame_size] float32, active [rows] bool -> a list of `DuplexOutput`, None where not active.

        Raises `AudioError` for a wrong shape or samples that are not finite, naming the row.
        """
        frames = np.asarray(frames, np.float32)
        if frames.shape != (self.rows, self.frame_size):
            raise AudioError(f"duplex step: frames {frames.shape}; expected [{self.rows}, {self.frame_size}]")
        live = np.ones(self.rows, bool) if active is None else np.asarray(active, bool)
        if live.shape != (self.rows,):
            raise RequestError(f"duplex step: active {live.shape}; expected [{self.rows}], one a row")
        bad = np.flatnonzero(live & ~np.isfinite(frames).all(1))
        if len(bad):
            raise AudioError(f"duplex step: row {bad[0]} holds NaN or infinite samples: clean the input")
        frames = np.clip(frames, -1, 1)
        turns = self._voice.step(frames, live)
        return [
            row.step(frames[i].copy(), turns[i], self._voice.speaking(i)) if live[i] else None
            for i, row in enumerate(self._rows)
        ]

    def reset(self, row: int, seed: int = 0, prompt: Mapping[str, Any] | None = None) -> None:
        """Row `row` becomes a new conversation; what is still computed for the one before is never given out.

        prompt: {"turns": [(role, Audio), …]} that were said before, and/or {"user": Audio}, a turn of the user's.
        Raises `RequestError` for anything else.
        """
        before, seed = self._row(row), seed_of(seed)
        earlier = self._earlier(prompt)
        before.end()
        self._rows[row] = ReplyRow(self, seed, self.policy)
        self._rows[row].remember(earlier)
        self._voice.reset(row, _rules(self.policy))

    # -- turns --

    def cancel(self, row: int) -> None:
        """The model stops at once; turns that waited for it stay unanswered."""
        self._row(row).cancel()

    def end_turn(self, row: int) -> None:
        """The user's turn is over now, whatever voice activity says. Without a sound in it, nothing happens."""
        self._row(row).end_turn()

    def clear(self, row: int) -> None:
        """What the user has said of a turn that is not over is forgotten."""
        self._row(row).clear()

    def truncate(self, row: int, seconds: float, source: str = "client") -> None:
        """Of the model's last turn only the first `seconds` were heard, says `source`; it stops if it still speaks."""
        self._row(row).truncate(float(seconds), source)

    def history(self, row: int) -> list[SpokenTurn]:
        """The turns that are over, oldest first, as the model is given them: what was not given out is not in them."""
        return [replace(turn, words=list(turn.words)) for turn in self._row(row).history]

    def errors(self, row: int) -> list[str]:
        """What went wrong in the row's replies, the last 20."""
        return list(self._row(row).errors)

    def replying(self, row: int) -> bool:
        """Whether a reply is computed or given out."""
        return self._row(row).reply is not None

    def policy_of(self, row: int) -> TurnPolicy:
        """How the row takes turns."""
        return self._row(row).policy

    def set_policy(self, row: int, policy: TurnPolicy) -> None:
        """Other rules from here on, until the row is reset; a turn and a reply that run go on."""
        self._row(row).policy = policy
        self._voice.rules(row, _rules(policy))

    def close(self) -> None:
        """Stop everything; nothing waits for it."""
        for row in self._rows:
            row.end()
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    # -- for the rows --

    def start(self, turns: list[tuple[str, Audio]], seed: int, policy: TurnPolicy) -> ReplyStream:
        """Begin to compute the reply to `turns`."""
        options = {**({"seed": seed} if self._takes_seed else {}), **policy.options}
        model = self.model
        return ReplyStream(
            lambda: model.reply(turns, stream=True, **options), self.sample_rate, policy.longest_reply, self._submit
        )

    def ask(self, ends: Callable[[Audio], float | bool], turn: Audio) -> "Question":
        """Begin to ask whether a turn is over."""
        question = Question(ends, turn)
        (self._ask or (lambda run: run()))(question.run)
        return question

    def _row(self, row: Any) -> ReplyRow:
        return self._rows[whole(row, f"there are rows 0 to {self.rows - 1}: row", 0, self.rows - 1)]

    def _earlier(self, prompt: Any) -> list[SpokenTurn]:
        if not isinstance(prompt, Mapping | None):
            raise RequestError(f"prompt is {prompt!r:.60}: a mapping, as {{'turns': [('user', audio)]}}, is expected")
        given = dict(prompt or {})
        turns = list(given.pop("turns", []))
        if "user" in given:
            turns.append(("user", given.pop("user")))
        if given:
            raise RequestError(f"prompt: '{next(iter(given))}': no such stream; there are turns, user")
        roles = ("user", "model")
        if strange := [t for t in turns if not isinstance(t, tuple | list) or len(t) != 2 or t[0] not in roles]:
            raise RequestError(f"prompt: a turn is ('user' or 'model', audio), not {strange[0]!r:.60}")
        return [SpokenTurn(role, self._mono(audio), self.sample_rate, _words(audio)) for role, audio in turns]

    def _mono(self, audio: Any) -> np.ndarray:
        if not isinstance(audio, Audio):
            raise RequestError("prompt: audio is given as vivavoce.Audio: use vivavoce.read(path)")
        return audio.mono().resample(self.sample_rate).samples[0]


class ReplySession:
    """One conversation with a half-duplex model; see `vivavoce.dialogue.DuplexSession`. Replies are computed inside the
    step that needs them, so that the same input gives the same output however fast it comes."""

    def __init__(
        self, model: Any, seed: int = 0, prompt: Mapping[str, Any] | None = None, policy: TurnPolicy | None = None
    ):
        self.lockstep = ReplyRows(model, 1, policy, workers=0)
        self.lockstep.reset(0, seed, prompt)
        self.frame_size, self.sample_rate = self.lockstep.frame_size, self.lockstep.sample_rate

    def step(self, frame: Any) -> DuplexOutput:
        """Hear one frame [frame_size], say one. Raises as `ReplyRows.step`."""
        out = self.lockstep.step(np.asarray(frame, np.float32)[None])[0]
        assert out is not None
        return out


class HalfDuplex:
    """A model with `reply`, and `duplex` and `duplex_rows` derived from it; everything else is the model's own."""

    def __init__(self, model: Any, policy: TurnPolicy | None = None, workers: int | None = None):
        self.model, self.policy, self.workers = model, policy or TurnPolicy(), workers

    @property
    def verbs(self) -> dict[str, str]:
        """Verb -> native or derived."""
        return {**getattr(self.model, "verbs", {"reply": "native"}), "duplex": "derived", "duplex_rows": "derived"}

    def duplex(self, seed: int = 0, prompt: Mapping[str, Any] | None = None) -> ReplySession:
        """One conversation, at any speed."""
        return ReplySession(self.model, seed, prompt, self.policy)

    def duplex_rows(self, rows: int) -> ReplyRows:
        """Many conversations in lockstep, in real time."""
        return ReplyRows(self.model, rows, self.policy, self.workers)

    def __getattr__(self, name: str) -> Any:
        if "model" not in self.__dict__:  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.model, name)


def duplex_from_reply(model: Any, policy: TurnPolicy | None = None, workers: int | None = None) -> Any:
    """The model itself if it has the verb `duplex`, else with that verb derived from `reply`.

    Raises `RequestError` for a model that has neither.
    """
    if hasattr(model, "duplex_rows"):
        return model
    if not hasattr(model, "reply"):
        raise RequestError(f"{getattr(model, 'name', model)!s:.60} has neither duplex nor reply")
    return HalfDuplex(model, policy, workers)


def _rules(policy: TurnPolicy) -> TurnRules:
    return TurnRules(policy.threshold, policy.silence)


def _parameters(function: Any) -> Mapping[str, Any]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # one that does not tell
        return {}


def _words(audio: Any) -> list[tuple[float, str]]:
    text = getattr(audio, "text", "")
    return [(0.0, text)] if text else []
