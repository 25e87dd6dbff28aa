"""ABX: do two stretches of speech with the same phone lie nearer to each other than to one with another phone?

Of frames of any kind, by item files as Libri-light and ZeroSpeech have them (arXiv:1912.07875, section 5.2): a token is
a stretch of a recording with its phone, the phones around it (its context) and its speaker. A and X have the same
phone, B another; all three share the context, A and B the speaker, X is theirs (`within`) or another's (`across`). The
error is the share of triplets in which X is nearer to B; ties count half. It is averaged over contexts (across: and
speakers of X), then speakers, then pairs of phones.

`librilight`: as facebookresearch/libri-light's eval_ABX.py computes it, which leaves out the last frame of every token;
`corrected`: with it, as fastabx has it (arXiv:2505.02692).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivavoce.errors import DataError, RequestError

RULES = ("corrected", "librilight")
HEADER = "#file onset offset #phone prev-phone next-phone speaker"
_PAIRS = 8192  # of which distances are computed at once, at most


@dataclass(frozen=True)
class Token:
    """One line of an item file: seconds `onset` to `offset` of the recording `file`."""

    file: str
    onset: float
    offset: float
    phone: str
    before: str
    after: str
    speaker: str


def read_items(path: str | Path) -> list[Token]:
    """The tokens of an item file; raises `DataError` with the line that is none."""
    place = Path(path)
    if not place.is_file():
        raise DataError(f"{place}: no such item file")
    found = []
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines()[1:], 2):
        fields = line.split()
        if not fields:
            continue
        try:
            file, onset, offset, phone, before, after, speaker = fields
            found.append(Token(file, float(onset), float(offset), phone, before, after, speaker))
        except ValueError as error:
            raise DataError(f"{place}, line {number}: {line!r:.80}: expected {HEADER[1:]}") from error
    if not found:
        raise DataError(f"{place}: an item file without items")
    return found


def write_items(tokens: Sequence[Token], path: str | Path) -> None:
    """Tokens as an item file, times to the tenth of a millisecond."""
    from vivavoce.data.files import atomic

    with atomic(Path(path)) as file:
        file.write(HEADER + "\n")
        for t in tokens:
            file.write(f"{t.file} {t.onset:.4f} {t.offset:.4f} {t.phone} {t.before} {t.after} {t.speaker}\n")


def cut(frames: np.ndarray, rate: float, onset: float, offset: float, rules: str) -> np.ndarray:
    """The frames [T, D] or codes [T] whose middle lies between onset and offset; `librilight` without the last."""
    first = max(0, math.ceil(rate * onset - 0.5))
    last = math.floor(rate * offset - 0.5) + (rules == "corrected")
    return frames[first : max(first, min(last, len(frames)))]


@dataclass(frozen=True)
class Table:
    """Errors by (speaker, phone A, phone B): values [speakers, phones, phones], NaN where nothing was asked."""

    speakers: tuple[str, ...]
    phones: tuple[str, ...]
    values: np.ndarray
    triplets: int

    def error(self, chosen: np.ndarray | None = None) -> float:
        """Mean over pairs of phones of the mean over speakers; `chosen`: indices of speakers, with repetitions."""
        some = self.values if chosen is None else self.values[chosen]
        there = ~np.isnan(some)
        count = there.sum(0)
        sums = np.where(there, some, 0.0).sum(0)
        return float((sums[count > 0] / count[count > 0]).mean()) if (count > 0).any() else math.nan


def abx(
    tokens: Sequence[Token],
    frames: Mapping[str, np.ndarray],
    rate: float,
    mode: str = "within",
    distance: str = "angular",
    rules: str = "corrected",
    context: str = "within",
    largest_group: int | None = 10,
    most_speakers: int | None = 5,
    seed: int = 0,
) -> Table:
    """Errors of `tokens` by the frames [T, D] (codes [T] for distance `identical`) of their files, `rate` a second.

    mode: `within` or `across` speakers. context: `within`, the phones around are the same, or `any`. largest_group:
    tokens of a group (of one context, speaker and phone) are sampled down to so many, anew for every pair of phones;
    most_speakers: of X for one A; both by Python's `random` seeded with `seed`, in Libri-light's order of draws; None:
    all. Tokens of files that are not there, and those without a frame, are left out.
    """
    if mode not in ("within", "across") or context not in ("within", "any") or rules not in RULES:
        raise RequestError(f"abx: mode {mode!r}, context {context!r}, rules {rules!r}: there are within and across; "
                           f"within and any; {' and '.join(RULES)}")  # fmt: skip
    if distance not in DISTANCES:
        raise RequestError(f"abx: distance {distance!r}: there are {', '.join(DISTANCES)}")
    groups = _Groups(tokens, frames, rate, rules, context, distance)
    chance = random.Random(seed)
    triplets = list(groups.within(chance, largest_group) if mode == "within"
                    else groups.across(chance, largest_group, most_speakers))  # fmt: skip
    sums: dict[tuple[int, int, int], list[float]] = {}
    measured = _Distances(groups.pieces, DISTANCES[distance])
    measured.add((x, b) for t in triplets for x in t.x for b in t.b)
    measured.add(_upper(t.x, t.a) if t.symmetric else ((x, a) for x in t.x for a in t.a) for t in triplets)
    for t in triplets:
        sums.setdefault((t.speaker, t.one, t.other), []).append(1 - _theta(t, measured))
    values = np.full((len(groups.speakers), len(groups.phones), len(groups.phones)), np.nan)
    for key, errors in sums.items():
        values[key] = np.mean(errors)
    return Table(tuple(groups.speakers), tuple(groups.phones), values, len(triplets))


@dataclass(frozen=True)
class _Triplets:
    """Tokens (numbers of pieces) that are A, B and X of one context, speaker and pair of phones."""

    speaker: int
    one: int
    other: int
    a: Sequence[int]
    b: Sequence[int]
    x: Sequence[int]
    symmetric: bool


class _Groups:
    """Tokens by context, speaker and phone; their numbers in the order in which they were first seen."""

    def __init__(self, tokens, frames, rate, rules, context, distance):
        self.pieces: list[np.ndarray] = []
        contexts: dict[tuple[str, str], int] = {}
        speakers: dict[str, int] = {}
        phones: dict[str, int] = {}
        keys = []
        prepared: dict[str, np.ndarray] = {}
        for token in tokens:
            around = ("", "") if context == "any" else (token.before, token.after)
            key = (
                contexts.setdefault(around, len(contexts)),
                speakers.setdefault(token.speaker, len(speakers)),
                phones.setdefault(token.phone, len(phones)),
            )
            if token.file not in frames:
                continue
            if token.file not in prepared:
                prepared[token.file] = _prepared(np.asarray(frames[token.file]), distance)
            piece = cut(prepared[token.file], rate, token.onset, token.offset, rules)
            if len(piece):
                keys.append(key)
                self.pieces.append(piece)
        self.speakers, self.phones = list(speakers), list(phones)
        # context -> speaker -> phone -> tokens, each in the order of its number
        self.tree: dict[int, dict[int, dict[int, list[int]]]] = {}
        for number in sorted(range(len(keys)), key=keys.__getitem__):
            c, s, p = keys[number]
            self.tree.setdefault(c, {}).setdefault(s, {}).setdefault(p, []).append(number)

    def within(self, chance: random.Random, largest: int | None) -> Iterator[_Triplets]:
        """A and X of one speaker."""
        for by_speaker in self.tree.values():
            for speaker, by_phone in by_speaker.items():
                for one, a in by_phone.items():
                    if len(a) < 2:
                        continue
                    for other, b in by_phone.items():
                        if other != one:
                            some_b, some_a = _some(b, largest, chance), _some(a, largest, chance)
                            yield _Triplets(speaker, one, other, some_a, some_b, some_a, True)

    def across(self, chance: random.Random, largest: int | None, most: int | None) -> Iterator[_Triplets]:
        """X of other speakers."""
        for by_speaker in self.tree.values():
            having: dict[int, dict[int, list[int]]] = {}
            for speaker, by_phone in by_speaker.items():
                for phone, group in by_phone.items():
                    having.setdefault(phone, {})[speaker] = group
            for speaker, by_phone in by_speaker.items():
                if len(by_phone) < 2:
                    continue
                for one, a in by_phone.items():
                    others = [group for who, group in having[one].items() if who != speaker]
                    if most is not None and len(others) > most:
                        others = chance.sample(others, k=most)
                    for x in others:
                        for other, b in by_phone.items():
                            if other != one:
                                some_a, some_b, some_x = (_some(group, largest, chance) for group in (a, b, x))
                                yield _Triplets(speaker, one, other, some_a, some_b, some_x, False)


def _some(group: list[int], largest: int | None, chance: random.Random) -> list[int]:
    return group if largest is None or len(group) <= largest else chance.sample(group, k=largest)


def _upper(x: Sequence[int], a: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each pair of a group with itself once: the distance is taken to be the same both ways."""
    return ((one, other) for i, one in enumerate(x) for other in a[i + 1 :])


def _theta(t: _Triplets, distances: _Distances) -> float:
    """Share of (x, a, b) in which a is nearer to x than b, ties half."""
    to_b = distances.get([(x, b) for x in t.x for b in t.b]).reshape(len(t.x), 1, len(t.b))
    if not t.symmetric:
        to_a = distances.get([(x, a) for x in t.x for a in t.a]).reshape(len(t.x), len(t.a), 1)
        return float(((to_a < to_b) + 0.5 * (to_a == to_b)).mean())
    size = len(t.a)
    square = np.zeros((size, size), np.float32)
    upper = np.triu_indices(size, 1)
    square[upper] = distances.get(list(_upper(t.x, t.a)))
    square = square + square.T
    won = (square[:, :, None] < to_b) + 0.5 * (square[:, :, None] == to_b)
    won[np.arange(size), np.arange(size)] = 0  # a token is not compared with itself
    return float(won.sum() / (size * (size - 1) * to_b.shape[2]))


# -- distances of frames --


def _prepared(frames: np.ndarray, distance: str) -> np.ndarray:
    """Frames as the distance takes them, float32 (codes stay integers)."""
    if distance == "identical":
        if frames.ndim != 1 or frames.dtype.kind not in "iu":
            raise RequestError("abx: distance identical compares codes [T], not frames")
        return frames
    if frames.ndim != 2:
        raise RequestError(f"abx: distance {distance} compares frames [T, D], not {list(frames.shape)}")
    x = frames.astype(np.float32)
    if distance in ("angular", "cosine"):
        return with_singularity(x)
    if distance == "kl":
        if (x < 0).any():
            raise RequestError("abx: distance kl compares distributions: frames must not be negative")
        return x / np.maximum(x.sum(1, keepdims=True), 1e-12)
    return x


def with_singularity(frames: np.ndarray) -> np.ndarray:
    """Frames [T, D] of length 1 with one more dimension, which puts zero frames as far as can be from all others."""
    norms = np.sqrt(np.square(frames).sum(1, keepdims=True))
    silent = norms[:, 0] == 0
    unit = frames / np.where(norms == 0, 1, norms)
    unit[silent] = 1 / math.sqrt(frames.shape[1])
    border = np.where(silent, np.float32(-2e12), np.float32(1e-12))[:, None]
    return np.concatenate([unit, border], axis=1).astype(np.float32)


def _angular(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip(a @ b.transpose(0, 2, 1), -1, 1)) / np.float32(math.pi)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (1 - np.clip(a @ b.transpose(0, 2, 1), -1, 1)) / 2


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a[:, :, None] - b[:, None]).sum(-1))


def _kl(a: np.ndarray, b: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """Mean of both divergences, each probability raised by epsilon."""
    p, q = a + np.float32(epsilon), b + np.float32(epsilon)
    log_p, log_q = np.log(p), np.log(q)
    own_p, own_q = (p * log_p).sum(-1)[:, :, None], (q * log_q).sum(-1)[:, None]
    return (own_p - p @ log_q.transpose(0, 2, 1) + own_q - log_p @ q.transpose(0, 2, 1)) / 2


def _identical(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, :, None] != b[:, None]).astype(np.float32)


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "angular": _angular,
    "cosine": _cosine,
    "euclidean": _euclidean,
    "kl": _kl,
    "identical": _identical,
}


class _Distances:
    """Distances of pairs of pieces, each computed once, many at a time."""

    def __init__(self, pieces: Sequence[np.ndarray], between: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.pieces, self.between = pieces, between
        self.found: dict[tuple[int, int], np.float32] = {}

    def add(self, pairs: Iterator) -> None:
        """Compute the pairs (or the pairs of several iterables of them)."""
        flat: set[tuple[int, int]] = set()
        for each in pairs:
            flat.update([each] if isinstance(each, tuple) else each)
        fresh = [pair for pair in flat if pair not in self.found]
        # pairs of like sizes side by side, so that little is padding
        fresh.sort(key=lambda pair: (len(self.pieces[pair[0]]), len(self.pieces[pair[1]]), pair))
        start = 0
        while start < len(fresh):
            longest = len(self.pieces[fresh[min(start + 256, len(fresh)) - 1][0]])
            width = self.pieces[0].shape[1] if self.pieces[0].ndim == 2 else 1
            size = max(64, min(_PAIRS, 4_000_000 // (max(longest, 1) * width)))
            some = fresh[start : start + size]
            self.found.update(zip(some, self._warped(some)))
            start += size

    def get(self, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        """Distances [N] float32 of pairs that were added."""
        return np.array([self.found[pair] for pair in pairs], np.float32)

    def _warped(self, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        one, two = ([self.pieces[pair[side]] for pair in pairs] for side in (0, 1))
        return warped(self.between(_padded(one), _padded(two)), *(np.array([len(p) for p in s]) for s in (one, two)))


def _padded(pieces: Sequence[np.ndarray]) -> np.ndarray:
    most = max(len(piece) for piece in pieces)
    found = np.zeros((len(pieces), most, *pieces[0].shape[1:]), pieces[0].dtype)
    for row, piece in zip(found, pieces):
        row[: len(piece)] = piece
    return found


def warped(distances: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Dynamic time warping of many pairs at once: distances [N, S, R] of frames, sizes rows [N] and columns [N] -> the
    least sum along a path over the length of that path, [N] float32.

    Of several best ways back the diagonal is taken before the left, the left before the upper one, as libri-light's
    dtw.pyx does; that decides the length.
    """
    count, most, widest = distances.shape
    cost = np.empty((count, most, widest), np.float32)
    length = np.empty((count, most, widest), np.int32)
    cost[:, :, 0] = np.cumsum(distances[:, :, 0].astype(np.float32), axis=1, dtype=np.float32)
    cost[:, 0] = np.cumsum(distances[:, 0].astype(np.float32), axis=1, dtype=np.float32)
    length[:, :, 0], length[:, 0] = np.arange(1, most + 1), np.arange(1, widest + 1)
    for i in range(1, most):
        for j in range(1, widest):
            up, diagonal, left = cost[:, i - 1, j], cost[:, i - 1, j - 1], cost[:, i, j - 1]
            straight = (diagonal <= left) & (diagonal <= up)
            aside = left <= up
            best = np.where(straight, diagonal, np.where(aside, left, up))
            cost[:, i, j] = distances[:, i, j] + best
            before = np.where(aside, length[:, i, j - 1], length[:, i - 1, j])
            length[:, i, j] = 1 + np.where(straight, length[:, i - 1, j - 1], before)
    at = np.arange(count), rows - 1, columns - 1
    return cost[at] / length[at].astype(np.float32)
