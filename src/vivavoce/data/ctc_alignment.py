"""Where the tokens of a text lie in the probabilities of a CTC network: forced alignment by Viterbi.

A path goes through the tokens in their order, with blanks before, between and behind them; a token may last several
frames, and between two equal tokens a blank is needed. The likeliest path says when each token is said. Graves et al.
2006, section 4.1 (the lattice); the path is that of torchaudio.functional.forced_align.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vivavoce.errors import DataError

MOST = 1_000_000_000  # states x frames whose steps are kept, a byte each


def forced_path(log_probs: np.ndarray, tokens: Sequence[int], blank: int = 0) -> np.ndarray:
    """The likeliest path: log-probabilities [T, V] and tokens [L] -> int64 [T], of each frame the number of the token
    that is said in it, -1 for a blank.

    Raises `DataError` where the frames are too few for the tokens, or too many to keep all paths.
    """
    frames, wanted = len(log_probs), np.asarray(tokens, np.int64)
    count = len(wanted)
    repeats = int((wanted[1:] == wanted[:-1]).sum())
    if frames < count + repeats:
        raise DataError(f"{frames} frames of sound are too few for a text of {count} tokens: is it another one's?")
    states = 2 * count + 1
    if frames * states > MOST:
        raise DataError(f"{frames} frames and {count} tokens are too many at once: give it in turns (segments)")
    if not frames:
        return np.zeros(0, np.int64)
    labels = np.full(states, blank)
    labels[1::2] = wanted
    # A token is reached from the token before it at once, unless both are the same.
    skips = np.zeros(states, bool)
    skips[3::2] = wanted[1:] != wanted[:-1]
    score = np.full(states, -np.inf)
    score[:2] = log_probs[0, labels[:2]]
    steps = np.zeros((frames, states), np.int8)  # how many states back the path was one frame ago
    for t in range(1, frames):
        before = np.full((3, states), -np.inf)
        before[0] = score
        before[1, 1:] = score[:-1]
        before[2, 2:] = np.where(skips[2:], score[:-2], -np.inf)
        steps[t] = before.argmax(0)
        score = np.take_along_axis(before, steps[t][None].astype(np.int64), 0)[0] + log_probs[t, labels]
    state = states - 1 if states == 1 or score[-1] >= score[-2] else states - 2
    path = np.empty(frames, np.int64)
    for t in range(frames - 1, -1, -1):
        path[t] = state // 2 if state % 2 else -1
        state -= int(steps[t, state])
    return path


def token_spans(path: np.ndarray, count: int) -> np.ndarray:
    """First frame and the one behind the last of every token of a path, int64 [count, 2]."""
    frames = np.flatnonzero(path >= 0)
    spans = np.zeros((count, 2), np.int64)
    said = path[frames]
    first = np.searchsorted(said, np.arange(count), side="left")
    last = np.searchsorted(said, np.arange(count), side="right") - 1
    spans[:, 0], spans[:, 1] = frames[first], frames[last] + 1
    return spans
