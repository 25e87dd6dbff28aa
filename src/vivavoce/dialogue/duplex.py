"""Full-duplex conversation on a frame clock: one input frame in, one output frame out, many rows in lockstep.

A row is one conversation: the states of encoder, backbone and decoder, the cells of the last column, and its own
randomness (seed, counter). Rows advance, hold and reset independently; what a row says never depends on the others,
because every step computes with the full number of rows.
"""

import math
import operator
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.errors import AudioError, RequestError
from vivavoce.nn.streaming import State, stack


@dataclass(frozen=True)
class DuplexOutput:
    """What one step says: audio [samples] float32, text and the user's words ("" when none), tokens stream -> ids."""

    audio: np.ndarray
    text: str
    user_text: str
    tokens: dict[str, list[int]] = field(default_factory=dict)


THRESHOLD, WITHIN = 0.5, 12  # see `Script.extend`
FREE = (-1, 0.0)
FRAME = 0  # `within` of an id that has its frame
PIECE = 4  # frames of a prompt that one step reads


class Script:
    """What a row's text stream is to carry: words in order, at moments that the model chooses, or ids frame by frame.

    A model that has learned when words are due gives "a word now" the probability 1 - P(pad), whichever word it is.
    """

    def __init__(self) -> None:
        self.words: deque[tuple[int, float, int]] = deque()  # id, threshold, within
        self.since = 0  # frames since the last word

    def extend(
        self, words: Sequence[int | Sequence[int]], threshold: float = THRESHOLD, within: int = WITHIN
    ) -> None:
        """Add words to the end: each comes in a frame of its own once the probability of a word reaches `threshold`,
        and at most `within` frames after the one before it; the further ids of a word of several in the frames behind
        its first. Where no word waits, the first comes at once."""
        for word in words:
            follows = bool(self.words) and self.words[-1][2] > FRAME
            for i in [word] if isinstance(word, int) else word:
                self.words.append((i, threshold if follows else 0.0, within))
                follows = False

    def extend_frames(self, ids: Sequence[int]) -> None:
        """Add one id a frame (the pad: nothing) to the end."""
        self.words.extend((i, 0.0, FRAME) for i in ids)

    def next(self) -> tuple[int, float]:
        """The id that is next, and the probability of a word from which on it comes in this frame (else: pad)."""
        if not self.words:
            return FREE
        word, threshold, within = self.words[0]
        return word, threshold if self.since + 1 < within else 0.0

    def advance(self, said: int) -> None:
        """A frame has passed, in which `said` was chosen for the text stream."""
        self.since += 1
        if self.words and said == self.words[0][0]:
            self.words.popleft()
            self.since = 0


@dataclass
class Prompt:
    """What a row hears, samples [frames, frame_size], and says, stream -> ids [levels, frames or fewer], before it
    lives; `at`: the frame that is next."""

    samples: Tensor
    ids: dict[str, Tensor]
    at: int = 0


def whole(value: Any, what: str, low: int, high: int = 2**63 - 1) -> int:
    """A whole number from `low` to `high`; raises `RequestError` naming `what` for anything else."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high or isinstance(value, bool):
        raise RequestError(f"{what} is {value!r:.60}: a whole number from {low} to {high} is expected")
    return number


def seed_of(value: Any) -> int:
    """A seed: a whole number of 64 bits."""
    return whole(value, "seed", -(2**63))


class DuplexRows:
    """`rows` conversations in lockstep with `system`, a full-duplex model (see `vivavoce.systems.duplex_system`).

    `frame_size` samples a step at `sample_rate` Hz. `seeds`: one a row (default: 0, 1, …), whole numbers of 64 bits.
    What a step costs goes by the last row that is needed: `release` rows that are not.
    """

    def __init__(self, system: Any, rows: int, seeds: Sequence[int] | None = None):
        self.system, self.rows = system, whole(rows, "duplex needs at least one row: rows", 1)
        self.frame_size, self.sample_rate = system.frame_size, system.sample_rate
        self.device = next(system.parameters()).device
        given = list(range(self.rows) if seeds is None else seeds)
        if len(given) != self.rows:
            raise RequestError(f"{len(given)} seeds for {rows} rows: give one a row")
        self.seeds = torch.tensor([seed_of(seed) for seed in given], dtype=torch.int64, device=self.device)
        self.state: State = system.initial_state(rows, self.seeds)
        self._released: set[int] = set()
        # An engine compiles its steps for a number of rows: that one stays.
        self._fixed = any(getattr(module, "engine", None) is not None for module in system.modules())
        self._script = [Script() for _ in range(rows)]
        self._prompts: dict[int, Prompt] = {}
        self._unheard = dict(enumerate(self.seeds.tolist()))  # rows without a step, and their seeds

    def step(self, frames: np.ndarray | Tensor, active: Sequence[bool] | np.ndarray | Tensor | None = None):
        """frames [rows, frame_size] float32, active [rows] bool -> list of `DuplexOutput`, None where not active, or
        where the row still reads its prompt (what it should have heard meanwhile is lost).

        Raises `AudioError` for a wrong shape or samples that are not finite, naming the row, `RequestError` for what
        is no array of numbers, for `active` of another shape, and for a row that has been released.
        """
        frames = _tensor(frames, torch.float32, "frames")  # checked and chosen from on the CPU
        if frames.shape != (self.rows, self.frame_size):
            raise AudioError(
                f"duplex step: frames {tuple(frames.shape)}; expected [{self.rows}, {self.frame_size}] "
                f"({self.frame_size / self.sample_rate * 1000:.0f} ms at {self.sample_rate} Hz)"
            )
        needed = torch.tensor([row not in self._released for row in range(self.rows)])
        mask = needed.clone() if active is None else _tensor(active, torch.bool, "active")
        if mask.shape != (self.rows,):
            raise RequestError(f"duplex step: active {tuple(mask.shape)}; expected [{self.rows}], one a row")
        if bool((mask & ~needed).any()):
            row = int((mask & ~needed).nonzero()[0])
            raise RequestError(f"duplex step: row {row} has been released: reset it before it is active again")
        finite = torch.isfinite(frames).all(1)
        if not bool((finite | ~mask).all()):
            row = int((~finite & mask).nonzero()[0])
            raise AudioError(f"duplex step: row {row} holds NaN or infinite samples: clean the input")
        live = mask & torch.tensor([row not in self._prompts for row in range(self.rows)])
        spoken = self._advance(torch.where(live[:, None], frames.clamp(-1, 1), torch.zeros(())), live)
        for _ in range(PIECE - 1):
            if self._prompts:
                self._advance(torch.zeros_like(frames), torch.zeros_like(live))
        return [self._output(spoken, row) if live[row] else None for row in range(self.rows)]

    def _advance(self, frames: Tensor, live: Tensor) -> Any:
        """One step of the `live` rows with these frames, and of each row with a prompt with the next of its own."""
        mask = live.clone()
        for row, prompt in self._prompts.items():
            frames[row], mask[row] = prompt.samples[prompt.at], True
        self._unheard = {row: seed for row, seed in self._unheard.items() if not mask[row]}
        forced, thresholds = self._forced(mask)
        there = {name: ids[: self.state.batch].to(self.device) for name, ids in forced.items()}
        limits = None if thresholds is None else thresholds[: self.state.batch].to(self.device)
        runs = mask[: self.state.batch].clone()
        runs[[row for row in self._released if row < len(runs)]] = True  # nobody minds, and it spares holding them
        with torch.inference_mode():
            spoken, self.state = self.system.step(
                frames[: len(runs)].to(self.device), self.state, runs.to(self.device), there, limits
            )
        spoken = replace(spoken, audio=spoken.audio.cpu(), tokens={n: ids.cpu() for n, ids in spoken.tokens.items()})
        if self.system.interaction.writes in forced:
            said = spoken.chosen[self.system.interaction.writes][:, 0].tolist()
            for row, script in enumerate(self._script):
                if mask[row]:
                    script.advance(said[row])
        for prompt in self._prompts.values():
            prompt.at += 1
        self._prompts = {row: prompt for row, prompt in self._prompts.items() if prompt.at < len(prompt.samples)}
        return spoken

    def reset(self, row: int, seed: int = 0, prompt: Mapping[str, Any] | None = None) -> None:
        """Row `row` becomes a new conversation with randomness `seed`; its past is forgotten to the bit.

        prompt: streams that were before it, from its first frame on: the heard stream as Audio, filled ones as ids or
        what their tokenizer reads (of text ids alone, frame by frame); what it leaves out is silence, or is chosen. It
        is read in pieces of a few frames inside the next steps, in which the row gives None. Raises `RequestError` for
        a row or a stream that there is not, and for what is no seed.
        """
        row, seed = self._row(row), seed_of(seed)
        if not isinstance(prompt, Mapping | None):
            raise RequestError(f"prompt is {prompt!r:.60}: a mapping of streams to what they held is expected")
        samples, ids = self.system.prompt(prompt or {})
        self._begin(row, seed, self._told(Prompt(samples, ids, at=-1)))
        self._script[row] = Script()
        self._prompts.pop(row, None)
        text = ids.pop(self.system.interaction.writes, torch.zeros(1, 0, dtype=torch.int64))
        ahead = max(self.system.lead.get(self.system.interaction.writes, [0])[0], 0)  # what stands there already
        self._script[row].extend_frames(text[0, ahead:].tolist())
        if len(samples):
            self._prompts[row] = Prompt(samples, ids)
            del self._unheard[row]

    def release(self, row: int) -> None:
        """Nobody needs row `row` until it is reset. Where few of the first rows are needed, steps become cheaper."""
        self._released.add(self._row(row))
        self._script[row] = Script()
        self._prompts.pop(row, None)
        self._unheard.pop(row, None)
        most = 1 + max((each for each in range(self.rows) if each not in self._released), default=0)
        if not self._fixed and most <= self.state.batch // 4:  # not at once: somebody else may come
            with torch.inference_mode():
                self.state = self.state.take(range(2 * most))

    def _wake(self, row: int) -> None:
        """Row `row` has a state, whatever it holds."""
        self._released.discard(row)
        there = self.state.batch
        if row >= there:
            more = min(self.rows, 1 << row.bit_length()) - there
            seeds = torch.zeros(more, dtype=torch.int64, device=self.device)
            with torch.inference_mode():
                self.state = stack([self.state, self.system.initial_state(more, seeds)])

    def _begin(self, row: int, seed: int, forced: Mapping[str, Tensor]) -> None:
        """Row `row` before its first step; forced: stream -> ids [1, levels] of what it says before it hears."""
        self._wake(row)
        there = {name: ids.to(self.device) for name, ids in forced.items()}
        fresh = self.system.initial_state(1, torch.tensor([seed], device=self.device), there)
        with torch.inference_mode():
            self.state = self.state.put([row], fresh, consume=True)
        self._unheard[row] = seed

    @property
    def prompted(self) -> list[int]:
        """Rows that still read their prompt."""
        return sorted(self._prompts)

    def say(self, row: int, text: str | Sequence[int], threshold: float = THRESHOLD, within: int = WITHIN) -> None:
        """Force `text` into the row's text stream from its next step on, in place of what it would have chosen; where
        it has not heard anything yet, from the stream's beginning.

        A string: its words in order, the first at once, each other one when the model finds a word due (see
        `Script.extend`). Ids: one a frame, 0 for none. Afterwards the text is the model's own again. Raises
        `RequestError` for a word that is not in the vocabulary, and for what is neither a text nor ids.
        """
        script = self._script[self._row(row)]
        if isinstance(text, str):
            if not isinstance(threshold, Real) or not math.isfinite(threshold):
                raise RequestError(f"say: threshold is {threshold!r:.60}: a probability is expected")
            script.extend(self.system.spoken(text), float(threshold), whole(within, "say: within", FRAME + 1))
        else:
            try:
                ids = [operator.index(word) for word in text]
            except TypeError as error:
                raise RequestError(f"say: {text!r:.60}: a text, or ids frame by frame, is expected") from error
            script.extend_frames(self.system.script(ids))
        writes = self.system.interaction.writes
        if row in self._unheard and script.words and self.system.lead[writes][0] > 0:
            # What stands in the first column has been chosen already: the row begins once more, with the first id.
            first = script.words[0][0]
            self._begin(row, self._unheard[row], {writes: torch.tensor([[first]])})
            script.advance(first)
            del self._unheard[row]

    def saying(self, row: int) -> int:
        """How many forced words or frames of the row are still to come."""
        return len(self._script[self._row(row)].words)

    def _row(self, row: Any) -> int:
        return whole(row, f"there are rows 0 to {self.rows - 1}: row", 0, self.rows - 1)

    def _forced(self, mask: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """What scripts and prompts force: ids as the system's step takes them, and thresholds of the text's."""
        forced: dict[str, Tensor] = {}
        for row, prompt in self._prompts.items():
            for name, ids in self._told(prompt).items():
                forced.setdefault(name, torch.full((self.rows, ids.shape[1]), -1))[row] = ids[0]
        if not any(script.words for script in self._script):
            return forced, None
        words, thresholds = zip(*(script.next() if mask[row] else FREE for row, script in enumerate(self._script)))
        return {**forced, self.system.interaction.writes: torch.tensor(words)[:, None]}, torch.tensor(thresholds)

    def _told(self, prompt: Prompt) -> dict[str, Tensor]:
        """What a prompt forces in the step in which its frame `at` is heard: stream -> ids [1, levels], -1 for none."""
        found = {}
        for name, ids in prompt.ids.items():
            cells = [prompt.at + lead for lead in self.system.lead[name]]
            each = [int(ids[k, cell]) if 0 <= cell < ids.shape[1] else -1 for k, cell in enumerate(cells)]
            if max(each) >= 0:
                found[name] = torch.tensor(each)[None]
        return found

    def _output(self, spoken: Any, row: int) -> DuplexOutput:
        tokens = {name: ids[row].tolist() for name, ids in spoken.tokens.items()}
        return DuplexOutput(
            audio=spoken.audio[row].numpy(),
            text=self.system.text_of(tokens, "writes"),
            user_text=self.system.text_of(tokens, "transcribes"),
            tokens=tokens,
        )


def _tensor(values: Any, dtype: torch.dtype, what: str) -> Tensor:
    """Numbers as a tensor on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    try:
        return torch.as_tensor(np.asarray(values), dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"duplex step: {what} is {values!r:.60}: an array of numbers is expected") from error


class DuplexSession:
    """One conversation: `out = session.step(frame)` with frame [frame_size] float32 at `sample_rate`.

    prompt: as `DuplexRows.reset` takes it; it is read at once.
    """

    def __init__(self, system: Any, seed: int = 0, prompt: Mapping[str, Any] | None = None):
        self.lockstep = DuplexRows(system, 1, [seed])
        if prompt is not None:
            self.lockstep.reset(0, seed, prompt)
            while self.lockstep.prompted:
                self.lockstep.step(torch.zeros(1, self.lockstep.frame_size), [False])
        self.frame_size, self.sample_rate = self.lockstep.frame_size, self.lockstep.sample_rate

    def step(self, frame: np.ndarray | Tensor) -> DuplexOutput:
        """Hear one frame [frame_size], say one. Raises as `DuplexRows.step`."""
        return self.lockstep.step(_tensor(frame, torch.float32, "frame")[None])[0]

    def say(self, text: str | Sequence[int], threshold: float = THRESHOLD, within: int = WITHIN) -> None:
        """Force words, or ids frame by frame, into the text stream from the next step on; see `DuplexRows.say`."""
        self.lockstep.say(0, text, threshold, within)

    @property
    def saying(self) -> int:
        """How many forced words or frames are still to come."""
        return self.lockstep.saying(0)
