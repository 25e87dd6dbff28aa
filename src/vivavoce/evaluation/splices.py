"""Clips that nobody said: pieces as long as a word exchanged, with every pair of neighbouring units left as it was.

A piece is cut out where the unit before it is the same as before the piece that takes its place, and its last unit is
the same too. So an exchange within a clip keeps every count of units and of pairs of units: a unigram model finds both
sides equally likely and a bigram model too; what tells them apart is more context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MARGIN = 2  # units that stay at both ends of a clip


@dataclass(frozen=True)
class Runs:
    """A clip as runs: units [N] and how many seconds each lasts [N]; two neighbours are never equal."""

    units: np.ndarray
    seconds: np.ndarray


def runs_of(codes: np.ndarray, frame_rate: float) -> Runs:
    """Codes [T], one a frame, as runs."""
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])) if len(codes) else np.zeros(0, int)
    lasting = np.diff(np.concatenate([starts, [len(codes)]]))
    return Runs(codes[starts].astype(np.int64), lasting / frame_rate)


def exchanged(clip: Runs, seconds: tuple[float, float], chance: np.random.Generator) -> Runs | None:
    """The clip with two of its pieces exchanged, each `seconds` (from, to) long; None where it has no two that fit.
    Drawn from all that fit."""
    pairs = _pairs(clip, clip, seconds)
    # two pieces of one clip stand apart: the second begins behind the end of the first
    pairs = pairs[pairs[:, 2] >= pairs[:, 1]]
    pairs = pairs[_differ(clip, clip, pairs)]
    if not len(pairs):
        return None
    a, b, c, d = pairs[chance.integers(len(pairs))]
    return _joined([(clip, 0, a), (clip, c, d), (clip, b, c), (clip, a, b), (clip, d, len(clip.units))])


def replaced(clip: Runs, other: Runs, seconds: tuple[float, float], chance: np.random.Generator) -> Runs | None:
    """The clip with one of its pieces replaced by one of another clip, of as many units; None where no two fit."""
    pairs = _pairs(clip, other, seconds)
    pairs = pairs[pairs[:, 1] - pairs[:, 0] == pairs[:, 3] - pairs[:, 2]]
    pairs = pairs[_differ(clip, other, pairs)]
    if not len(pairs):
        return None
    a, b, c, d = pairs[chance.integers(len(pairs))]
    return _joined([(clip, 0, a), (other, c, d), (clip, b, len(clip.units))])


def _joined(parts: list[tuple[Runs, int, int]]) -> Runs:
    """Pieces (clip, from, to) one after another."""
    units, seconds = ([getattr(clip, name)[a:b] for clip, a, b in parts] for name in ("units", "seconds"))
    return Runs(np.concatenate(units), np.concatenate(seconds))


def _pieces(clip: Runs, seconds: tuple[float, float]) -> np.ndarray:
    """All pieces [P, 2] (from, to) of a clip that last `seconds`, away from its ends."""
    ends = np.concatenate([[0.0], np.cumsum(clip.seconds)])
    count = len(clip.units)
    found = [np.zeros((0, 2), np.int64)]
    for start in range(MARGIN, count - MARGIN):
        first = int(np.searchsorted(ends, ends[start] + seconds[0]))
        last = int(np.searchsorted(ends, ends[start] + seconds[1], side="right"))
        stops = np.arange(max(first, start + 1), min(last, count - MARGIN + 1))
        found.append(np.stack([np.full(len(stops), start), stops], axis=1))
    return np.concatenate(found)


def _pairs(one: Runs, two: Runs, seconds: tuple[float, float]) -> np.ndarray:
    """Pieces of both [P, 4] (from, to, from, to) with the same unit before them and the same last unit."""
    first, second = _pieces(one, seconds), _pieces(two, seconds)
    size = 1 + max(int(each.units.max(initial=0)) for each in (one, two))
    keys = [
        each.units[pieces[:, 0] - 1] * size + each.units[pieces[:, 1] - 1]
        for each, pieces in ((one, first), (two, second))
    ]
    order = np.argsort(keys[1], kind="stable")
    ranked = keys[1][order]
    low, high = (np.searchsorted(ranked, keys[0], side=side) for side in ("left", "right"))
    counts = high - low
    which = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.concatenate([first[which], second[order[low[which] + within]]], axis=1)


def _differ(one: Runs, two: Runs, pairs: np.ndarray) -> np.ndarray:
    """Which pairs would change the clip: bool [P]."""
    same = (pairs[:, 1] - pairs[:, 0]) == (pairs[:, 3] - pairs[:, 2])
    for index in np.flatnonzero(same):
        a, b, c, d = pairs[index]
        same[index] = np.array_equal(one.units[a:b], two.units[c:d])
    return ~same
