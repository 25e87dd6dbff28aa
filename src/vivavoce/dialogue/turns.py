"""A spoken turn from a full-duplex model: feed the user's audio, then silence until the answer is over."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np

from vivavoce.audio import Audio
from vivavoce.dialogue.duplex import DuplexOutput
from vivavoce.errors import RequestError

LOUD = 10 ** (-50 / 20)  # a frame whose RMS is above this is heard as speech
LIMITS = ("quiet", "wait", "limit")  # of `reply_pieces`


class Session(Protocol):
    """A full-duplex conversation, frame by frame: `DuplexSession`, or what has its interface."""

    frame_size: int
    sample_rate: int

    def step(self, frame: np.ndarray) -> DuplexOutput:
        """Hear one frame [frame_size], say one."""
        ...


@dataclass(frozen=True)
class Piece:
    """A piece of a reply as it comes: seconds from the end of the user's turn, text and audio of one frame."""

    seconds: float
    text: str
    audio: np.ndarray
    user_text: str = ""


@dataclass
class Reply:
    """A whole reply: text, audio from the end of the last user turn on, pieces (seconds, text), the user's words."""

    text: str
    audio: Audio
    pieces: list[tuple[float, str]]
    user_text: str = ""


def check_limits(limits: Mapping[str, Any]) -> None:
    """Raise `RequestError` for what is no limit of `reply_pieces`, or not in seconds."""
    for name, value in limits.items():
        if name not in LIMITS:
            raise RequestError(f"reply: there is no '{name}'; there are {', '.join(LIMITS)}")
        if not (isinstance(value, Real) and math.isfinite(value) and float(value) >= 0):
            raise RequestError(f"reply: {name} is {value!r:.60}: seconds, 0 or more, are expected")


def reply_pieces(
    session: Session, samples: np.ndarray, quiet: float = 0.8, wait: float = 3.0, limit: float = 30.0
) -> Iterator[tuple[Piece, DuplexOutput]]:
    """Pieces of the answer to samples [n] float32 at the session's rate; leaving the loop cancels.

    Silence is fed until the text pads and the voice is silent for `quiet` seconds after speech, or for `wait` seconds
    without any, at most `limit`. A step's audio is heard while the next frame comes in: a piece's seconds say when.
    """
    size, rate = session.frame_size, session.sample_rate
    end = len(samples) / rate
    heard = -(-len(samples) // size)
    padded = np.zeros(heard * size, dtype=np.float32)
    padded[: len(samples)] = samples
    spoke, silent = False, 0.0
    for step in range(heard + int(limit * rate / size)):
        frame = padded[step * size : (step + 1) * size] if step < heard else np.zeros(size, dtype=np.float32)
        out = session.step(frame)
        seconds = (step + 1) * size / rate - end
        yield Piece(seconds, out.text, out.audio, out.user_text), out
        if step + 1 < heard:
            continue
        loud = bool(out.text) or float(np.sqrt(np.mean(np.square(out.audio)))) > LOUD
        spoke |= loud
        silent = 0.0 if loud else silent + size / rate
        if silent >= (quiet if spoke else wait) - 1e-6:
            return


def whole_reply(session: Session, samples: np.ndarray, **limits: float) -> Reply:
    """The pieces of `reply_pieces`, put together."""
    pieces, audio, user = [], [], []
    for piece, _ in reply_pieces(session, samples, **limits):
        if piece.text:
            pieces.append((piece.seconds, piece.text))
        if piece.user_text:
            user.append(piece.user_text)
        start = round(piece.seconds * session.sample_rate)
        if start + session.frame_size > 0:
            audio.append(piece.audio[max(0, -start) :])
            if start > 0 and len(audio) == 1:
                audio.insert(0, np.zeros(start, dtype=np.float32))
    samples_out = np.concatenate(audio) if audio else np.zeros(0, dtype=np.float32)
    return Reply(
        text=joined([text for _, text in pieces]).strip(),
        audio=Audio(samples_out[None], session.sample_rate),
        pieces=pieces,
        user_text=joined(user).strip(),
    )


def joined(words: Sequence[str]) -> str:
    """Words with blanks between them; pieces that bring their own blanks are put together as they are."""
    if any(word[:1].isspace() for word in words):
        return "".join(words)
    return " ".join(words)
