"""`UnitLM`: a textless language model. It hears units, goes on with units, and says them by a unit vocoder.

GSLM (arXiv:2102.01192), TWIST (arXiv:2305.13009) and their kin: the units' repetitions are left out (layout `dedup`)
while the model reads, and come back when it speaks: those of what it heard as they were, those of what it goes on with
as the vocoder's duration predictor has them. pGSLM (arXiv:2109.03264) has each unit's duration and pitch as streams of
their own (tokenizers of kind `prosody`), reads them, and says them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.audio import Audio
from vivavoce.dialogue import Piece, Reply
from vivavoce.errors import RequestError
from vivavoce.systems.codec_model import mono_samples, resynthesize
from vivavoce.systems.model import MissingVerb
from vivavoce.systems.token_lm import TokenLM
from vivavoce.systems.token_system import PROMPT
from vivavoce.tokenizers.prosody import RunProsody, prosody

CONTINUE = "continue"


class UnitLM(TokenLM):
    """A language model whose spoken stream is made of units. With a vocoder it has `reply` (task `continue`: it goes on
    with what it has heard) and `resynth`."""

    @property
    def verbs(self) -> dict[str, str]:
        """Verb -> native or derived."""
        own = {"fill": "native", "loglik": "native"}
        if self._voice is None:
            return own
        more = {"reply": "native"} if self.tasks else {}
        return {**own, **more, "resynth": "native"}

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task of `reply` -> what it is given."""
        task = self.system.tasks.get(CONTINUE)
        goes_on = task is not None and self._units in task.fills and f"{self._units}{PROMPT}" in task.given
        return {CONTINUE: ("audio",)} if goes_on and self._voice is not None else {}

    def tokens(self, audio: Audio) -> dict[str, np.ndarray]:
        """What the model hears of a waveform: stream -> codes [levels, frames], repetitions included; with streams of
        prosody the runs of units [1, N], and of each its duration and pitch, ids [1, N] or values [N, 1]."""
        units = self.system.streams[self._units].values(audio, "the audio").cpu().numpy()
        if not self._prosody:
            return {self._units: units}
        codec = self.system.codec
        samples = mono_samples(audio, self.sample_rate, "the audio")
        found = prosody(samples, units[0], self.sample_rate, codec.hop)
        return {self._units: found.units[None], **{name: kind.measure(found) for name, kind in self._prosody.items()}}

    def fill(
        self, task: str, given: Any = None, length: Any = None, seed: Any = 0, limit: int = 10_000
    ) -> Any:
        """As `TokenLM.fill`; audio given as the units gives their prosody too."""
        if isinstance(given, list):
            return super().fill(task, [self._heard(item) for item in given], length, seed, limit)
        return super().fill(task, self._heard(given or {}), length, seed, limit)

    def loglik(self, items: Sequence[Any], vocabulary: str = "full", seed: int = 0, task: str | None = None) -> Any:
        """As `TokenLM.loglik`; a segment of audio is scored by its units and by their prosody."""
        if self._prosody and items:
            single = isinstance(items[0], tuple)
            rows = [items] if single else items
            parts = [[part for segment in row for part in self._parts(segment)] for row in rows]
            items = parts[0] if single else parts
        return super().loglik(items, vocabulary, seed, task)

    def reply(
        self, turns: Any, stream: bool = False, task: str = CONTINUE, seed: int = 0, seconds: float = 10.0
    ) -> Any:
        """Go on with what is heard: `turns` is one turn, [("user", audio)], and `.audio` of the reply what follows it.

        A list of such lists gives a list of replies, each the same as alone. It ends by the model's end token, or after
        `seconds`. stream=True gives one `Piece`. Raises `AudioError` for unusable audio, `RequestError` for turns that
        are not of this form.
        """
        self._need(bool(self.tasks), "reply")
        if task not in self.tasks:
            raise RequestError(f"reply: task '{task}': {self.name} has {', '.join(self.tasks)}")
        if not isinstance(seconds, int | float) or not 0 < seconds < 3600:
            raise RequestError(f"reply: seconds={seconds!r}: give a number above 0")
        single = not (isinstance(turns, list) and turns and isinstance(turns[0], list))
        asked = [turns] if single else turns
        if stream and not single:
            raise RequestError("reply: stream=True takes one conversation at a time")
        replies = [self._go_on(one, seed, float(seconds)) for one in asked]
        if stream:
            return iter([Piece(0.0, "", replies[0].audio.samples[0])])
        return replies[0] if single else replies

    def resynth(self, audio: Any) -> Any:
        """Through the units and back in the vocoder's voice: as many samples as were given; a list gives a list."""
        self._need(self._voice is not None, "resynth")
        if isinstance(audio, list):
            return [self.resynth(one) for one in audio]
        return resynthesize(self.system.codec, mono_samples(audio, self.sample_rate, "the audio to send through"))

    # -- speaking --

    @property
    def _units(self) -> str:
        assert self.recipe.interaction is not None
        return self.recipe.interaction.speaks

    @property
    def _voice(self) -> Any:
        return self.system.codec.vocoder

    @property
    def _prosody(self) -> dict[str, RunProsody]:
        streams = self.system.streams.items()
        return {name: stream.tokenizer for name, stream in streams if isinstance(stream.tokenizer, RunProsody)}

    def _heard(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """What is given, with audio in the place of the units as all that is heard of it."""
        if self._prosody and isinstance(item.get(self._units), Audio):
            return {**self.tokens(item[self._units]), **{n: v for n, v in item.items() if n != self._units}}
        return dict(item)

    def _parts(self, segment: Any) -> list[Any]:
        """A segment of `loglik`; one of audio as a segment for each stream."""
        if not (isinstance(segment, tuple) and len(segment) == 3 and isinstance(segment[1], Audio)):
            return [segment]
        if segment[0] not in ("audio", self._units):
            return [segment]
        return [(name, value, segment[2]) for name, value in self.tokens(segment[1]).items()]

    @property
    def _speaks(self) -> str | None:
        return None  # what is filled is said here, with durations

    def _need(self, there: bool, verb: str) -> None:
        if not there:
            what = f"its units have no vocoder, or it has no task '{CONTINUE}'"
            raise MissingVerb(f"{self.name} has no verb '{verb}' ({what}); it has {', '.join(self.verbs)}")

    def _result(self, task: str, filled: Mapping[str, Tensor], row: int) -> dict[str, Any]:
        result = super()._result(task, filled, row)
        if self._voice is not None and self._units in self.system.task(task).fills:
            result["audio"] = self._said({name: result[name] for name in result if name in self.system.streams})
        return result

    def _said(self, cells: Mapping[str, np.ndarray]) -> Audio:
        """Filled streams as sound; units without repetitions last as filled, or as the vocoder has it."""
        units = torch.from_numpy(cells[self._units][:1].astype(np.int64))
        for name, kind in self._prosody.items():
            if kind.of == "duration" and name in cells:
                frames = torch.from_numpy(kind.frames(cells[name]))[: units.shape[1]]
                rest = units.shape[1] - len(frames)
                return self._sound(units, torch.nn.functional.pad(frames, (0, rest), value=1)[None])
        once = self._units in self.system.layout.dropped
        return self._sound(units, None if once else torch.ones_like(units))

    def _sound(self, units: Tensor, durations: Tensor | None) -> Audio:
        """Units [1, N] that last `durations` [1, N] frames (None: as predicted) -> audio [1, samples]."""
        if not units.shape[1]:
            return Audio(np.zeros((1, 0), np.float32), self.sample_rate)
        with torch.inference_mode():
            wave = self.system.codec.speak(units, durations)[0]
        return Audio(wave.cpu().numpy().astype(np.float32), self.sample_rate)

    def _go_on(self, turns: Any, seed: int, seconds: float) -> Reply:
        """The reply to one turn."""
        if not isinstance(turns, list | tuple) or len(turns) != 1 or not isinstance(turns[0], tuple):
            raise RequestError(f"reply: task '{CONTINUE}' is given one turn, [('user', audio)], not {turns!r:.60}")
        role, audio = turns[0][0], turns[0][-1]
        if role != "user" or len(turns[0]) != 2:
            raise RequestError(f"reply: a turn is ('user', audio), not {turns[0]!r:.60}")
        samples = mono_samples(audio, self.sample_rate, "the user's turn")
        heard = self.tokens(Audio(samples[None], self.sample_rate))
        most = int(seconds * self.system.codec.frame_rate)
        before = {name: self._shown(name, value) for name, value in heard.items()}
        # what follows the units (their prosody) ends where they do
        length = {self._units: heard[self._units].shape[1] + most}
        filled = self.fill(CONTINUE, heard, length, seed)
        after = {
            name: value[before[name] :] if value.dtype.kind == "f" else value[:, before[name] :]
            for name, value in filled.items()
            if name in heard
        }
        said = self._said(after)
        return Reply("", Audio(said.samples[:, : int(seconds * self.sample_rate)], self.sample_rate), [])

    def _shown(self, name: str, value: np.ndarray) -> int:
        """Cells of the prompt that `fill` gives back: without repetitions where the layout drops them."""
        if value.dtype.kind == "f":
            return len(value)
        if name not in self.system.layout.dropped or not value.shape[1]:
            return value.shape[1]
        return 1 + int(np.count_nonzero(np.diff(value[0])))
