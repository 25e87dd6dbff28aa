"""Counts that a program reads: how many frames go into each segment. Pure functions of lengths, `Given` and a seed.

Each takes `Facts` and its options and returns [B, R] int64, right-padded with `END`; a row that
ends in FOREVER is OPEN from there on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.layouts.cells import END, FOREVER, OPEN, Given, StreamSpec
from vivavoce.layouts.program import Recipe


@dataclass(frozen=True)
class Facts:
    """What tables and views are computed from. lengths: stream -> cells of each level [B, levels]; seeds: [B]."""

    streams: tuple[StreamSpec, ...]
    lengths: Mapping[str, Tensor]
    given: Given
    seeds: Tensor
    batch: int
    device: torch.device

    def frames(self, stream: str) -> Tensor:
        """Frames of a stream [B]: the most that any of its levels has."""
        ratios = next(spec.ratios for spec in self.streams if spec.name == stream)
        cells = torch.tensor(ratios, dtype=torch.int64, device=self.device)
        return ((self.lengths[stream] + cells - 1).div(cells, rounding_mode="floor")).amax(1)

    def is_open(self, stream: str) -> bool:
        """Whether no row says how long the stream is."""
        return bool((self.lengths[stream] >= OPEN).all())

    def counts(self, name: str) -> Tensor:
        """`Given.counts[name]` as [B, R] int64, or an error that says how to give it."""
        if name not in self.given.counts:
            raise RequestError(f"this layout needs given.counts['{name}']: the frames of each segment, [B, R]")
        counts = self.given.counts[name].to(self.device, torch.int64)
        if counts.dim() != 2 or counts.shape[0] != self.batch:
            raise RequestError(f"given.counts['{name}'] is {tuple(counts.shape)}, expected [{self.batch}, segments]")
        return counts


def counts(facts: Facts, name: str) -> Tensor:
    """As given."""
    return facts.counts(name)


def pieces(facts: Facts, name: str, stream: str) -> Tensor:
    """As given; where nothing is given and the stream is open, each piece ends by its end token."""
    if name not in facts.given.counts and facts.is_open(stream):
        return torch.full((facts.batch, 1), FOREVER, dtype=torch.int64, device=facts.device)
    return facts.counts(name)


def advanced(facts: Facts, name: str, stream: str, frames: int) -> Tensor:
    """Pieces of which every one but the first begins `frames` frames earlier (ELLA-V's local advance); the last holds
    all that remains."""
    given = pieces(facts, name, stream)
    columns = torch.arange(given.shape[1], device=given.device)
    last = columns == (given != END).sum(1, keepdim=True) - 1
    end = (given.clamp(0, OPEN).cumsum(1) - frames).clamp(min=0)
    before = torch.cat([torch.zeros_like(end[:, :1]), end[:, :-1]], dim=1)
    out = torch.where(last, given.clamp(min=OPEN), end - before)
    return torch.where(given == END, END, out)


def chunks(facts: Facts, stream: str, size: int) -> Tensor:
    """Cells of a stream in each chunk of `size` once repetitions inside a chunk are dropped (SyncLLM)."""
    open_end = torch.full((facts.batch, 1), FOREVER, dtype=torch.int64, device=facts.device)
    if stream not in facts.given.values:
        if facts.is_open(stream):
            return open_end
        raise RequestError(f"this layout needs given.values['{stream}'] to drop repetitions")
    from vivavoce.layouts.views import new_cells

    keep, length = new_cells(facts, stream, size)
    number = -(-keep.shape[1] // size)
    padded = torch.zeros(facts.batch, number * size, dtype=torch.int64, device=facts.device)
    padded[:, : keep.shape[1]] = keep
    per_chunk = padded.view(facts.batch, number, size).sum(2)
    exist = torch.arange(number, device=facts.device) < (length[:, None] + size - 1).div(size, rounding_mode="floor")
    known = torch.where(exist, per_chunk, END)
    return torch.cat([known, open_end], dim=1) if facts.is_open(stream) else known


def rounds(facts: Facts, fixed: tuple[tuple[str, int], ...], given: tuple[tuple[str, str], ...]) -> Tensor:
    """1 for every chunk until the last stream has ended: (stream, frames in a chunk) and (stream, its counts' name)."""
    number = torch.zeros(facts.batch, dtype=torch.int64, device=facts.device)
    for stream, size in fixed:
        frames = facts.frames(stream)
        number = torch.maximum(number, (frames + size - 1).div(size, rounding_mode="floor"))
        if facts.is_open(stream):
            number.fill_(OPEN)
    for stream, name in given:
        entries = pieces(facts, name, stream)
        forever = (entries == FOREVER).any(1)
        number = torch.maximum(number, torch.where(forever, OPEN, (entries != END).sum(1)))
    width = int(torch.where(number >= OPEN, 0, number).max()) + 1 if facts.batch else 1
    exist = torch.arange(width, device=facts.device) < number[:, None]
    return torch.where((number >= OPEN)[:, None], FOREVER, torch.where(exist, 1, END))


def spans(facts: Facts, first: str, second: str, span: float, share: float, column: int) -> Tensor:
    """Alternating spans of words, pairs of one in the first stream and one in the second.

    column 0: cells of the first stream in the first span of each pair; 1: of the second stream there (dropped);
    2 and 3: of the second and the first stream (dropped) in the second span.
    """
    words = [facts.counts(f"word/{name}") for name in (first, second)]
    if words[0].shape != words[1].shape:
        raise RequestError(f"given.counts: 'word/{first}' is {tuple(words[0].shape)}, 'word/{second}' "
                           f"{tuple(words[1].shape)}: the same words have to stand in both")
    exists = words[0] != END
    if "word/choice" in facts.given.counts:
        choice = facts.counts("word/choice").clamp(0, 1)
    else:
        choice = choose_words(facts.seeds, words[0].shape[1], span, share)
    if not choice.shape[1]:
        return torch.full((facts.batch, 0), END, dtype=torch.int64, device=facts.device)
    before = torch.cat([torch.zeros_like(choice[:, :1]), choice[:, :-1]], dim=1)
    pair = ((before == 1) & (choice == 0)).cumsum(1)
    stream, chosen = ((0, 0), (1, 0), (1, 1), (0, 1))[column]
    cells = torch.where(exists & (choice == chosen), words[stream], 0)
    out = torch.zeros_like(choice).scatter_add(1, pair, cells)
    pairs = torch.where(exists, pair + 1, 0).amax(1, keepdim=True)
    return torch.where(torch.arange(out.shape[1], device=out.device) < pairs, out, END)


def choose_words(seeds: Tensor, words: int, span: float, share: float) -> Tensor:
    """0 or 1 for every word [B, words]: spans of 1 + Poisson words, by each row's seed alone."""
    other = span * (1 - share) / share
    rows = []
    for seed in seeds.tolist():
        random = torch.Generator().manual_seed(seed)
        row: list[int] = []
        now = int(torch.rand((), generator=random) >= share)
        while len(row) < words:
            mean = other if now else span
            size = max(1, int(torch.poisson(torch.tensor(mean), generator=random)))
            row += [now] * size
            now = 1 - now
        rows.append(row[:words])
    return torch.tensor(rows, dtype=torch.int64, device=seeds.device).view(len(rows), words)


TABLES: dict[str, Callable[..., Tensor]] = {
    "advanced": advanced,
    "chunks": chunks,
    "counts": counts,
    "pieces": pieces,
    "rounds": rounds,
    "spans": spans,
}


def table(recipe: Recipe, facts: Facts) -> Tensor:
    """The table of a recipe, [B, R]."""
    options: dict[str, Any] = dict(recipe.options)
    return TABLES[recipe.function](facts, **options)
