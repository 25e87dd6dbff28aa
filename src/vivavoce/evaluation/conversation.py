"""One recorded conversation with a full-duplex model: a recording goes in frame by frame, everything is kept and timed.

Times are wall-clock times of a conversation in real time: frame i of the microphone is complete at (i + 1) frames, so
the answer's frame i starts to sound there, plus what its computing took.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.errors import RequestError

SILENT = 10 ** (-45 / 20)  # a 10 ms window below -45 dBFS counts as silence of a voice without noise


@dataclass
class Conversation:
    """What was heard and said, on one time axis.

    `heard` and `said` are float32 [samples] of equal length at `sample_rate`; `tokens` maps a stream to ids
    [frames, levels] (-1: none); `user_text` and `model_text` are (seconds, text); `step_seconds` [frames] is computing.
    """

    name: str
    sample_rate: int
    frame_size: int
    heard: np.ndarray
    said: np.ndarray
    question_seconds: float
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    user_text: list[tuple[float, str]] = field(default_factory=list)
    model_text: list[tuple[float, str]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    @property
    def duration(self) -> float:
        """Seconds of conversation."""
        return len(self.heard) / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Computing time over time of audio: below 1 is faster than real time."""
        return sum(self.step_seconds) / (len(self.step_seconds) * self.frame_size / self.sample_rate)

    @property
    def answer_latency(self) -> float | None:
        """Seconds from the question's last sound to the answer's first, computing included; None without an answer."""
        start = first_sound(self.said[round(self.question_seconds * self.sample_rate) :], self.sample_rate)
        if start is None:
            return None
        frame = int((self.question_seconds + start) * self.sample_rate) // self.frame_size - 1
        return start + self.step_seconds[min(max(frame, 0), len(self.step_seconds) - 1)]

    def transcript(self, who: str) -> str:
        """All words of `who` ("user" or "model") as one line."""
        return join_text([text for _, text in (self.user_text if who == "user" else self.model_text)])


def join_text(pieces: list[str]) -> str:
    """Text from a stream's pieces: whole words get blanks between them, pieces that bring their own do not."""
    if any(piece[:1].isspace() for piece in pieces):
        return "".join(pieces).strip()
    return " ".join(piece for piece in pieces if piece)


def _windows(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """RMS of each whole 10 ms window."""
    size = sample_rate // 100
    count = len(samples) // size
    return np.sqrt(np.mean(samples[: count * size].reshape(count, size) ** 2, axis=1))


def first_sound(samples: np.ndarray, sample_rate: int, level: float = SILENT) -> float | None:
    """Seconds until the first 10 ms window louder than `level` (RMS); None when all are silent."""
    loud = np.flatnonzero(_windows(samples, sample_rate) > level)
    return float(loud[0]) / 100 if len(loud) else None


def last_sound(samples: np.ndarray, sample_rate: int) -> float:
    """Seconds to the end of the last 10 ms window within 30 dB of the loudest; the whole length when all is silent."""
    level = _windows(samples, sample_rate)
    if not len(level) or level.max() == 0:
        return len(samples) / sample_rate
    return float(np.flatnonzero(level > level.max() * 10 ** (-30 / 20))[-1] + 1) / 100


def converse(
    model: Any, audio: Audio, name: str = "", seed: int = 0, quiet: float = 0.8, wait: float = 3.0
) -> Conversation:
    """Play `audio` to `model.duplex`, then silence until the answer is over, and keep all that happened.

    After the recording the model hears silence until it has been silent for `quiet` seconds after an answer, or for
    `wait` seconds without any; at most 20 s. The answer may begin while the recording still runs. Raises
    `RequestError` for a model without the verb `duplex`.
    """
    import time

    from vivavoce.audio import resample

    if "duplex" not in model.verbs:
        raise RequestError(f"the model has no verb 'duplex' (it has {', '.join(model.verbs)})")
    rate = int(model.sample_rate)
    question = resample(audio.samples, audio.sample_rate, rate).mean(axis=0)
    session = model.duplex(seed=seed)
    size = int(session.frame_size)
    result = Conversation(name, rate, size, question, question, last_sound(question, rate))
    tokens: dict[str, list[np.ndarray]] = {}
    heard, said = [], [np.zeros(size, np.float32)]
    silent, spoke = 0.0, False
    for index in range(-(-(len(question) + 20 * rate) // size)):
        frame = question[index * size : (index + 1) * size]
        frame = np.pad(frame, (0, size - len(frame))).astype(np.float32)
        start = time.perf_counter()
        out = session.step(frame)
        result.step_seconds.append(time.perf_counter() - start)
        heard.append(frame)
        said.append(np.asarray(out.audio, np.float32).reshape(-1))
        seconds = (index + 1) * size / rate
        for pieces, text in ((result.user_text, out.user_text), (result.model_text, out.text)):
            if text:
                pieces.append((seconds, text))
        for stream, levels in (out.tokens or {}).items():
            tokens.setdefault(stream, []).append(np.atleast_1d(np.asarray(levels)).reshape(-1))
        sounding = bool((_windows(said[-1], rate) > SILENT).any()) or bool(out.text)
        spoke = spoke or sounding
        silent = 0.0 if sounding else silent + size / rate
        if (index + 1) * size >= len(question) and silent >= (quiet if spoke else wait):
            break
    result.heard = np.concatenate([*heard, np.zeros(size, np.float32)])
    result.said = np.concatenate(said)
    result.tokens = {stream: np.stack(rows) for stream, rows in tokens.items()}
    return result
