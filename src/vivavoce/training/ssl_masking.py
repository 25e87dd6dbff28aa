"""Which frames a pre-training hides: spans, visible blocks, altered bands. Every row draws from its own chance.

Spans as wav2vec 2.0 and HuBERT have them (fairseq's and transformers' `compute_mask_indices`), visible blocks as
data2vec 2.0 (arXiv:2212.07525, section 3.3) and EAT (arXiv:2401.03497), bands and spans of spectra as TERA
(arXiv:2007.06028).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vivavoce.errors import RecipeError


@dataclass(frozen=True)
class Masking:
    """How frames are hidden. kind:

    - `spans`: prob x T / length spans (rounded at random, at least one) of `length` frames each begin at different
      frames, all equally likely; they may overlap, so that fewer than `prob` of the frames are hidden.
    - `starts`: every frame begins a span of `length` with probability `prob` (BEST-RQ).
    - `blocks`: what stays visible are blocks of `length`; exactly int(T x (1 - prob)) frames do (data2vec 2.0).
      adjust: share of the frames that is drawn in addition, because blocks overlap.
    - `squares`: likewise, of frames that are patches, `bands` to a column: blocks of `length` by `length` (EAT).
    """

    prob: float = 0.8
    length: int = 10
    kind: str = "spans"
    adjust: float = 0.05
    bands: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("spans", "starts", "blocks", "squares"):
            raise RecipeError(f"mask.kind: {self.kind!r} is none of spans, starts, blocks, squares")
        if not 0 < self.prob < 1 or not isinstance(self.length, int) or self.length < 1:
            raise RecipeError(f"mask: prob {self.prob} (between 0 and 1) and length {self.length} (at least 1)")

    def row(self, frames: int, chance: torch.Generator) -> Tensor:
        """Which of `frames` are hidden: bool [frames]."""
        if frames < 1:
            return torch.zeros(0, dtype=torch.bool)
        kinds = {"spans": self._spans, "starts": self._starts, "blocks": self._blocks, "squares": self._blocks}
        return kinds[self.kind](frames, chance)

    def _spans(self, frames: int, chance: torch.Generator) -> Tensor:
        length = min(self.length, frames)
        count = int(self.prob * frames / length + float(torch.rand((), generator=chance)))
        count = max(min(count, frames // length, frames - length + 1), 1)
        return grown(torch.randperm(frames - length + 1, generator=chance)[:count], frames, length)

    def _starts(self, frames: int, chance: torch.Generator) -> Tensor:
        starts = (torch.rand(frames, generator=chance) < self.prob).nonzero()[:, 0]
        return grown(starts, frames, self.length)

    def _blocks(self, frames: int, chance: torch.Generator) -> Tensor:
        high = self.length if self.kind == "squares" else 1
        visible = int(frames * (1 - self.prob))
        drawn = int(frames * (1 - self.prob + self.adjust) / (self.length * high))
        centres = torch.randint(frames, (drawn,), generator=chance)
        column, band = centres // self.bands, centres % self.bands
        shown = torch.zeros(frames, dtype=torch.bool)
        for offset in range(self.length):
            at = (column + offset - self.length // 2).clamp(0, frames // self.bands - 1) * self.bands
            for up in range(high):
                shown[at + (band + up - high // 2).clamp(0, self.bands - 1)] = True
        excess = int(shown.sum()) - visible
        order = torch.randperm(frames, generator=chance)
        wrong = order[shown[order] if excess > 0 else ~shown[order]][: abs(excess)]
        shown[wrong] = ~shown[wrong]
        return ~shown


def grown(starts: Tensor, frames: int, length: int) -> Tensor:
    """Spans of `length` from each of `starts`, cut at the end: bool [frames]."""
    mask = torch.zeros(frames + length, dtype=torch.bool)
    for offset in range(length):
        mask[starts + offset] = True
    return mask[:frames]


def mask_rows(masking: Masking, counts: Sequence[int], chances: Sequence[torch.Generator]) -> Tensor:
    """The hidden frames of rows of `counts` frames, each by its own chance: bool [B, most]; none beyond a row's end."""
    rows = [masking.row(count, chance) for count, chance in zip(counts, chances, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def only(x: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of frames [B, T, D] those that are shown [B, T], one behind another [B, most, D], how many of each row count [B],
    and where each stood, as `put_back` takes it."""
    some = shown.sum(1)
    order = torch.argsort((~shown).long(), dim=1, stable=True)[:, : max(int(some.max()), 1)]
    at = order[..., None].expand(-1, -1, x.shape[2])
    return x.gather(1, at), some, at


def put_back(y: Tensor, at: Tensor, shown: Tensor, others: Tensor) -> Tensor:
    """What `only` took, at its places again among `others`, [D] or [B, T, D]: [B, T, D]."""
    whole = others.expand(len(shown), shown.shape[1], -1)
    filled = whole.scatter(1, at[..., :1].expand(-1, -1, y.shape[2]), y.to(whole.dtype))
    return torch.where(shown[..., None], filled, whole)


@dataclass(frozen=True)
class Alteration:
    """How TERA alters spectra (arXiv:2007.06028, section III.B), each row for itself.

    time: share of the frames altered, in spans of `span`: 80 % of the times all of them are silenced (0, which is the
    mean of normed frames), in 10 % other frames of the row stand there, in 10 % they stay. bands: up to this share of
    the bands, a block of neighbours, is silenced in all frames. noise: with this probability Gaussian noise of
    deviation `deviation` is added everywhere.
    """

    time: float = 0.15
    span: int = 7
    bands: float = 0.2
    noise: float = 0.15
    deviation: float = 0.2

    def row(self, spectrum: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames [T, D] -> altered ones, and what of them is to be told: bool [T, D], spans and bands."""
        size, width = spectrum.shape
        altered = spectrum.clone()
        span = min(self.span, size)
        count = min(max(1, int(self.time * size / span)), size - span + 1) if size else 0
        mask = torch.zeros(size, dtype=torch.bool)
        if count:
            mask = grown(torch.randperm(size - span + 1, generator=chance)[:count], size, span)
        dice = float(torch.rand((), generator=chance))
        if dice < 0.8:
            altered[mask] = 0.0
        elif dice < 0.9:
            places = mask.nonzero()[:, 0]
            altered[mask] = spectrum[torch.randint(size, (len(places),), generator=chance)]
        most = int(self.bands * width)
        wide = int(torch.randint(most + 1, (), generator=chance))
        low = int(torch.randint(width - wide + 1, (), generator=chance))
        altered[:, low : low + wide] = 0.0
        told = mask[:, None].repeat(1, width)
        told[:, low : low + wide] = True
        if float(torch.rand((), generator=chance)) < self.noise:
            altered = altered + self.deviation * torch.randn(altered.shape, generator=chance)
        return altered, told
