"""Two models without weights, for trying what drives a model: `tone` answers with a tone, `echo` with what it heard.

Both are deterministic, take next to no time, and have every verb and every task, so that a server, a client or a page
can be tried whole on any machine. `tone` takes turns: it answers 320 ms after the last sound and stops as soon as
somebody speaks. `echo` has none: what it says is what it heard one frame ago, sample for sample.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vivavoce.audio import Audio
from vivavoce.dialogue import DuplexOutput, Piece, Reply, reply_pieces, whole_reply
from vivavoce.dialogue.duplex import seed_of, whole
from vivavoce.dialogue.turns import LOUD, check_limits
from vivavoce.errors import AudioError, RequestError
from vivavoce.schema import Recipe, Stream
from vivavoce.systems.codec_model import Resynthesis, mono_samples
from vivavoce.systems.model import VERBS, Model
from vivavoce.systems.speech_lm import Features, joined

RATE, FRAME = 24_000, 1920  # 80 ms, as Mimi and mini have it
PAUSE, ANSWER, EVERY = 4, 12, 4  # frames: of quiet before an answer, of an answer, from word to word
TASKS = ("answer", "continue", "transcribe", "translate", "speak")
VOCABULARY = 256  # bytes of text; levels of a sample at 8 bits


@dataclass
class SignalRow:
    """What a conversation remembers. `last`: the frame before [samples]; counts are in frames."""

    seed: int = 0
    last: np.ndarray = field(default_factory=lambda: np.zeros(FRAME, np.float32))
    heard: int = 0
    quiet: int = PAUSE
    saying: int = 0
    answers: int = 0
    samples: int = 0


class SignalRows:
    """`rows` conversations in lockstep with a signal model: the interface of `vivavoce.dialogue.DuplexRows`."""

    frame_size, sample_rate = FRAME, RATE

    def __init__(self, name: str, rows: int):
        self.name, self.rows = name, whole(rows, "duplex needs at least one row: rows", 1)
        self._rows = [SignalRow(seed) for seed in range(self.rows)]

    @property
    def prompted(self) -> list[int]:
        """Rows that still read their prompt: none, it is read at once."""
        return []

    def step(self, frames: Any, active: Any = None) -> list[DuplexOutput | None]:
        """frames [rows, 1920], active [rows] bool -> a list of `DuplexOutput`, None where not active."""
        frames = np.asarray(frames, dtype=np.float32)
        if frames.shape != (self.rows, FRAME):
            raise AudioError(f"duplex step: frames {frames.shape}; expected [{self.rows}, {FRAME}]")
        live = np.ones(self.rows, bool) if active is None else np.asarray(active, bool)
        return [self._advance(row, frame) if on else None for row, frame, on in zip(self._rows, frames, live)]

    def reset(self, row: int, seed: int = 0, prompt: Mapping[str, Any] | None = None) -> None:
        """Row `row` becomes a new conversation; `prompt`: {"user": Audio} that it has heard already."""
        row = whole(row, f"there are rows 0 to {self.rows - 1}: row", 0, self.rows - 1)
        self._rows[row] = SignalRow(seed_of(seed))
        for name, value in (prompt or {}).items():
            if name != "user":
                raise RequestError(f"prompt: '{name}': no such stream; there is user")
            for frame in frames_of(mono_samples(value, RATE, "prompt")):
                self._advance(self._rows[row], frame)

    def _advance(self, row: SignalRow, frame: np.ndarray) -> DuplexOutput:
        loud = float(np.sqrt(np.mean(np.square(frame)))) > LOUD
        begins = loud and row.quiet > 0
        row.quiet = 0 if loud else row.quiet + 1
        out = self._tone(row, loud) if self.name == "tone" else self._echo(row, frame)
        return DuplexOutput(*out, "sound" if begins else "", {"text": [len(out[1])]})

    def _echo(self, row: SignalRow, frame: np.ndarray) -> tuple[np.ndarray, str]:
        said, row.last = row.last, frame.copy()
        row.saying, before = int(float(np.sqrt(np.mean(np.square(said)))) > LOUD), row.saying
        return said, "echo" if row.saying > before else ""

    def _tone(self, row: SignalRow, loud: bool) -> tuple[np.ndarray, str]:
        row.heard = row.heard + 1 if loud else row.heard
        if loud:
            row.saying = 0
        elif row.heard and row.quiet == PAUSE:
            row.heard, row.saying, row.answers = 0, ANSWER, row.answers + 1
        if not row.saying:
            return np.zeros(FRAME, np.float32), ""
        at, row.saying = ANSWER - row.saying, row.saying - 1
        word = ("tone", f"number {row.answers}", "ends")[at // EVERY] if at % EVERY == 0 else ""
        return tone(pitch(row.seed), at * FRAME, FRAME), word


class SignalSession:
    """One conversation; see `vivavoce.dialogue.DuplexSession`."""

    frame_size, sample_rate = FRAME, RATE

    def __init__(self, name: str, seed: int = 0, prompt: Mapping[str, Any] | None = None):
        self.lockstep = SignalRows(name, 1)
        self.lockstep.reset(0, seed, prompt)

    def step(self, frame: Any) -> DuplexOutput:
        """Hear one frame [1920], say one."""
        out = self.lockstep.step(np.asarray(frame)[None])[0]
        assert out is not None
        return out


class SignalModel(Model):
    """`tone` or `echo`, with every verb."""

    def __init__(self, name: str):
        self.name, self.sample_rate = name, RATE
        frames = Stream(width=FRAME, clock=RATE / FRAME)
        self.recipe = Recipe(system=name, sample_rate=RATE, streams={"user": frames, "voice": frames})
        self.system = SimpleNamespace(frame_size=FRAME)

    @property
    def verbs(self) -> dict[str, str]:
        """Verb -> native: all there are."""
        return dict.fromkeys(VERBS, "native")

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task of `reply` -> what it is given: all but `speak` hear."""
        return {task: ("text",) if task == "speak" else ("audio",) for task in TASKS}

    @property
    def parameters(self) -> int:
        """None at all."""
        return 0

    @property
    def device(self) -> torch.device:
        """Where numpy computes."""
        return torch.device("cpu")

    def to(self, device: Any, dtype: Any = None) -> "SignalModel":
        """There is nothing to move."""
        return self

    def duplex(self, seed: int = 0, prompt: Mapping[str, Any] | None = None) -> SignalSession:
        """One full-duplex conversation."""
        return SignalSession(self.name, seed, prompt)

    def duplex_rows(self, rows: int) -> SignalRows:
        """Many full-duplex conversations in lockstep."""
        return SignalRows(self.name, rows)

    def reply(self, turns: Any, stream: bool = False, task: str = "answer", seed: int = 0, **limits: Any) -> Any:
        """`speak`: the last turn's text as a tone a word; `transcribe`: "sound" for each sound in the last turn's
        audio; else the conversation's own answer. Turns and results as `SpeechLM.reply` has them."""
        check_limits(limits)
        if task not in TASKS:
            raise RequestError(f"reply: task '{task}': {self.name} has {', '.join(TASKS)}")
        if not turns:
            raise RequestError("reply: no turns; give [('user', audio)]")
        if task == "speak":
            pieces = list(spoken(turns[-1][1], seed))
            return iter(pieces) if stream else joined(pieces, RATE)
        session = self.duplex(seed)
        for _, earlier in turns[:-1]:
            whole_reply(session, mono_samples(earlier, RATE, "an earlier turn"), **limits)
        samples = mono_samples(turns[-1][1], RATE, "the user's turn")
        if stream:
            return (piece for piece, _ in reply_pieces(session, samples, **limits))
        done = whole_reply(session, samples, **limits)
        if task == "transcribe":
            return Reply(done.user_text, Audio(np.zeros((1, 0), np.float32), RATE), [], done.user_text)
        return done

    def fill(self, task: str, given: Any = None, length: int | None = None, seed: int = 0, limit: int = 10_000) -> Any:
        """`duplex`: {"user": Audio} -> what is said meanwhile; `speak`: {"text": words} -> their tones."""
        given = given or {}
        if task == "speak":
            return {"audio": joined(list(spoken(given.get("text", ""), seed)), RATE).audio}
        session = self.duplex(seed)
        outs = [session.step(f) for f in frames_of(mono_samples(given["user"], RATE, "user"))[:limit]]
        audio = np.concatenate([out.audio for out in outs]) if outs else np.zeros(0, np.float32)
        return {"audio": Audio(audio[None], RATE), "text": np.array([[out.tokens["text"][0] for out in outs]])}

    def loglik(self, items: Any, vocabulary: str = "full", **options: Any) -> Any:
        """Every token is as likely as every other: bytes of text, samples of audio at 8 bits."""
        scores = []
        for item in items:
            counts = {"text": 0, "voice": 0}
            for _, value, scored in item:
                if scored:
                    text = isinstance(value, str)
                    counts["text" if text else "voice"] += len(value.encode()) if text else value.samples.shape[-1]
            scores.append({k: (-n * math.log(VOCABULARY), n) for k, n in counts.items() if n})
        return scores

    def features(self, audio: Any, layer: int | None = None) -> Any:
        """The level of each frame, [T, 1]."""
        if isinstance(audio, list):
            return [self.features(one, layer) for one in audio]
        frames = frames_of(mono_samples(audio, RATE, "audio"))
        return Features(np.sqrt(np.mean(np.square(frames), axis=1, keepdims=True)), RATE / FRAME)

    def resynth(self, audio: Any) -> Any:
        """The same samples; its codes are the samples at 8 bits."""
        if isinstance(audio, list):
            return [self.resynth(one) for one in audio]
        samples = mono_samples(audio, RATE, "the audio to send through")
        codes = np.clip(np.round((samples + 1) * 127.5), 0, 255).astype(np.int64)
        return Resynthesis(Audio(samples[None], RATE), codes[None], 8.0 * RATE, float(RATE))


def pitch(seed: int) -> float:
    """Hz of a conversation's tone: 440 and the 31 semitones of a quarter above it, by seed."""
    return 440.0 * 2 ** ((seed % 32) / 48)


def tone(hertz: float, start: int, samples: int) -> np.ndarray:
    """Samples [samples] of a sine of a quarter of full scale, from its sample `start` on."""
    return (0.25 * np.sin(2 * np.pi * hertz / RATE * (start + np.arange(samples)))).astype(np.float32)


def frames_of(samples: np.ndarray) -> np.ndarray:
    """Samples [n] cut into frames [ceil(n / 1920), 1920], the last padded with zeros."""
    return np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)


def spoken(text: Any, seed: int) -> Iterator[Piece]:
    """Words as tones: two frames each, a frame of silence behind it; a word's pitch is that of its letters."""
    if not isinstance(text, str) or not text.split():
        raise RequestError(f"speak: {text!r:.60}: a text is expected, ('user', \"words\")")
    for number, word in enumerate(text.split()):
        sound = tone(pitch(seed + sum(word.encode())), 0, 2 * FRAME)
        for at, audio in enumerate((sound[:FRAME], sound[FRAME:], np.zeros(FRAME, np.float32))):
            yield Piece((3 * number + at) * FRAME / RATE, "" if at else word, audio)
