"""Pairs of continuations of one prompt, one of them preferred: from JSON lines, or from a token store.

    {"prompt": {"units": [5, 9, 5]}, "chosen": {"units": [7, 7]}, "rejected": {"units": [1]}}

A line's values are ids [T] or [levels, T] of streams; a bare list is that of the only stream. `reference`: {"chosen":
-3.1, "rejected": -4.0} are log-probabilities (nats) of a reference, where they were computed beforehand. In a store two
rows make a pair, each the prompt and a continuation: their `extra` says {"pair": name, "preferred": true or false,
"prompt": frames of the first stream that both begin with}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.errors import DataError

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """prompt, chosen, rejected: stream -> ids int64 [levels, T]; reference: log-probabilities of both sides, if known;
    place: where it is from, for errors."""

    prompt: Mapping[str, np.ndarray]
    chosen: Mapping[str, np.ndarray]
    rejected: Mapping[str, np.ndarray]
    reference: tuple[float, float] | None = None
    place: str = ""


def read_pairs(path: str | Path, stream: str | None = None) -> list[Pair]:
    """All pairs of a file of JSON lines, or of a folder that is a token store. stream: whose ids bare lists are.

    Raises `DataError` that names the line or row, and what is wrong.
    """
    place = Path(path)
    if place.is_dir():
        return _stored(place)
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: pairs cannot be read: {error}") from error
    pairs = [_parsed(line, f"{place}, line {n}", stream) for n, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise DataError(f"{place}: no pair: give lines with prompt, chosen and rejected")
    return pairs


def endings(rows: Sequence[Any], stream: str, prompt: int) -> list[Pair]:
    """Pairs made of utterances (`TokenRow`): of each its first `prompt` frames, how it goes on, and in its place how
    the next one in the list does from there; both as long as the shorter. Utterances that end before are left out.

    `DataError` where fewer than two are long enough.
    """
    codes = [(row.id, np.asarray(row.streams[stream][0]).astype(np.int64)) for row in rows]
    codes = [(name, ids) for name, ids in codes if ids.shape[1] > prompt]
    if len(codes) < 2:
        raise DataError(f"of {len(rows)} utterances {len(codes)} have more than {prompt} frames: pairs need two")
    pairs = []
    for (name, ids), (_, other) in zip(codes, [*codes[1:], codes[0]]):
        end = min(ids.shape[1], other.shape[1])
        chosen, rejected = ({stream: each[:, prompt:end]} for each in (ids, other))
        pairs.append(Pair({stream: ids[:, :prompt]}, chosen, rejected, place=name))
    return pairs


def _parsed(line: str, where: str, stream: str | None) -> Pair:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no JSON: {error}") from error
    if not isinstance(said, dict) or not {*SIDES} <= set(said):
        raise DataError(f"{where}: a mapping with prompt, chosen and rejected is expected, not {line:.60}")
    if unknown := sorted(set(said) - {"prompt", "reference", "id", *SIDES}):
        raise DataError(f"{where}: unknown '{unknown[0]}'; there are prompt, chosen, rejected, reference, id")
    parts = {key: _values(said.get(key, {}), f"{where}: {key}", stream) for key in ("prompt", *SIDES)}
    if parts["chosen"].keys() != parts["rejected"].keys() or not parts["chosen"]:
        raise DataError(f"{where}: chosen and rejected have other streams, or none: {[*parts['chosen']]}")
    reference = said.get("reference")
    if reference is not None:
        try:
            reference = tuple(float(reference[side]) for side in SIDES)
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"{where}: reference: two log-probabilities, chosen and rejected, are expected") from error
    return Pair(**parts, reference=reference, place=where)


def _values(said: Any, where: str, stream: str | None) -> dict[str, np.ndarray]:
    if isinstance(said, list):
        if stream is None:
            raise DataError(f"{where}: a bare list, and several streams: name them, {{stream: ids}}")
        said = {stream: said}
    if not isinstance(said, dict):
        raise DataError(f"{where}: ids by stream are expected, not {said!r:.60}")
    found = {}
    for name, ids in said.items():
        try:
            array = np.atleast_2d(np.asarray(ids))
        except ValueError as error:
            raise DataError(f"{where}.{name}: levels of different length") from error
        if array.ndim != 2 or (array.size and not np.issubdtype(array.dtype, np.integer)):
            raise DataError(f"{where}.{name}: integers [T] or [levels, T] are expected")
        found[name] = array.astype(np.int64)
    return found


def _stored(folder: Path) -> list[Pair]:
    from vivavoce.data.store import TokenStore

    store = TokenStore(folder)
    sides: dict[str, dict[bool, int]] = {}
    prompts: dict[str, int] = {}
    for row, text in enumerate(store.column("extra")):
        extra = json.loads(text)
        if "pair" in extra:
            sides.setdefault(str(extra["pair"]), {})[bool(extra.get("preferred"))] = row
            prompts.setdefault(str(extra["pair"]), int(extra.get("prompt", 0)))
    pairs = []
    first = next(iter(store.specs.values()))
    for name, rows in sides.items():
        if len(rows) < 2:
            raise DataError(f"{folder}: pair '{name}': one row preferred and one not are expected in `extra`")
        parts: dict[str, dict[str, np.ndarray]] = {"prompt": {}, "chosen": {}, "rejected": {}}
        for preferred, row in rows.items():
            for stream, channels in store[row].streams.items():
                ids = np.asarray(channels[0])
                cut = round(prompts[name] * store.specs[stream].rates[0] / first.rates[0])
                side = "chosen" if preferred else "rejected"
                before, parts[side][stream] = ids[:, :cut], ids[:, cut:]
                if stream in parts["prompt"] and not np.array_equal(parts["prompt"][stream], before):
                    raise DataError(f"{folder}: pair '{name}': its rows differ in the first {cut} frames of '{stream}'")
                parts["prompt"][stream] = before
        place = f"{folder}: pair '{name}'"
        pairs.append(Pair(parts["prompt"], parts["chosen"], parts["rejected"], None, place))
    if not pairs:
        raise DataError(f"{folder}: no pairs: no row's `extra` names one")
    return pairs


def shuffled(count: int, step: int, batch: int, seed: int = 0) -> Sequence[int]:
    """The pairs of a step: each once an epoch, in an order of the epoch's own; a pure function of its arguments."""
    orders: dict[int, np.ndarray] = {}
    found = []
    for number in range(step * batch, (step + 1) * batch):
        epoch = number // count
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(count)
        found.append(int(orders[epoch][number % count]))
    return found
