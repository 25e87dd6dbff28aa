"""How a half-duplex conversation takes turns, and what is remembered of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.dialogue.duplex import whole
from vivavoce.dialogue.reply_stream import joined
from vivavoce.errors import RequestError


@dataclass(frozen=True)
class TurnPolicy:
    """How turns are taken. Seconds, unless a name says otherwise.

    - The user speaks from `threshold` of Silero's probability on. After `silence` the turn is over, if `ends` agrees:
      it is called, off the clock, with the turn so far (Audio) and says whether it is over (bool, or a probability);
      without it silence alone decides. After `patience` of silence the turn is over whatever `ends` says, or if it has
      not answered. With `automatic` off only `end_turn` ends a turn, and only `cancel` stops the model.
    - The turn's audio begins `prefix` before the voice and goes on `suffix` behind it. Less voice than `shortest` is no
      turn; after `longest` a turn is over, and what the user goes on to say is the next one.
    - With `interrupt` the model stops when the user has spoken for `interrupt_after` (less than that while it speaks is
      no turn); if it had not begun yet, the user's turn goes on. Without, turns wait until the model is through.
    - `longest_reply`: what is longer is cut. `keep`, `keep_seconds`: how many earlier turns, and how much of their
      sound, are remembered; those of the roles that it `remembers` go to the model. `options`: further arguments of
      `model.reply`.
    """

    threshold: float = 0.5
    silence: float = 0.5
    ends: Callable[[Audio], float | bool] | None = None
    patience: float = 3.0
    automatic: bool = True
    prefix: float = 0.3
    suffix: float = 0.2
    shortest: float = 0.1
    longest: float = 30.0
    interrupt: bool = True
    interrupt_after: float = 0.0
    longest_reply: float = 120.0
    keep: int = 20
    keep_seconds: float = 120.0
    remembers: tuple[str, ...] = ("user", "model")
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (n for n, kind in TurnPolicy.__annotations__.items() if kind is float):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise RequestError(f"turns: {name} is {value!r:.60}: a number from 0 on is expected")
        whole(self.keep, "turns: keep", 0)
        if not 0 < self.threshold < 1 or not self.longest > 0 or not self.longest_reply > 0:
            raise RequestError("turns: threshold is between 0 and 1, longest and longest_reply are more than 0")


@dataclass
class SpokenTurn:
    """What `role` ("user", "model") said from `began` on (seconds of the conversation): audio [samples] at
    `sample_rate` Hz, words (seconds of the turn, text). `cut`: what said where it was cut ("frames": the frames that
    were given out; "client": somebody who hears it; None: it was not). `error`: why there is no more of it."""

    role: str
    samples: np.ndarray
    sample_rate: int
    words: list[tuple[float, str]] = field(default_factory=list)
    began: float = 0.0
    cut: str | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        """All words in one line."""
        return joined([text for _, text in self.words]).strip()

    @property
    def audio(self) -> "TurnAudio":
        """As it is given to a model."""
        return TurnAudio(self.samples[None], self.sample_rate, self.text)

    def truncate(self, seconds: float, source: str) -> None:
        """Keep what was heard in the first `seconds`; more than there is, or less than nothing, is clamped."""
        kept = min(max(0, round(seconds * self.sample_rate)), len(self.samples))
        self.samples, self.cut = self.samples[:kept], source
        self.words = [word for word in self.words if word[0] * self.sample_rate < kept]


@dataclass(frozen=True, eq=False, repr=False)
class TurnAudio(Audio):
    """A turn's sound with its words, where they are known, for models that read both."""

    text: str = ""
