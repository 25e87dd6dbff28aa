"""Rows as the encoder hears them: through others by WavLM's utterance mixing (arXiv:2110.13900, section III.C,
algorithm 1), or in a disguised voice."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mixed(wave: Tensor, lengths: Tensor, seeds: Tensor, probability: float, noise: float = 0.1) -> Tensor:
    """Rows [B, samples], each with `probability` under a piece of another row, or of noise.

    The piece is at most half as long as the row and stands anywhere in it. Another row's piece is from 5 dB louder to
    5 dB softer than the row; with the share `noise` it is white noise instead, -5 to 20 dB below it. A row alone only
    meets noise. seeds [B]: of each row's chance.
    """
    result = wave.clone()
    rows = len(wave)
    for row, (length, seed) in enumerate(zip(lengths.tolist(), seeds.tolist())):
        chance = torch.Generator().manual_seed(seed)
        if length < 2 or float(torch.rand((), generator=chance)) >= probability:
            continue
        size = int(torch.randint(1, length // 2 + 1, (), generator=chance))
        start = int(torch.randint(length - size + 1, (), generator=chance))
        if rows == 1 or float(torch.rand((), generator=chance)) < noise:
            piece = torch.randn(size, generator=chance).to(wave)
            ratio = -5 + 25 * float(torch.rand((), generator=chance))
        else:
            other = (row + 1 + int(torch.randint(rows - 1, (), generator=chance))) % rows
            theirs = int(lengths[other])
            size = min(size, theirs)
            if size < 1:
                continue
            begin = int(torch.randint(theirs - size + 1, (), generator=chance))
            piece = wave[other, begin : begin + size]
            ratio = -5 + 10 * float(torch.rand((), generator=chance))
        power = wave[row, :length].square().mean() / piece.square().mean().clamp(min=1e-10)
        result[row, start : start + size] += piece * (power * 10 ** (-ratio / 10)).sqrt()
    return result


class PlainAndDisguised:
    """Before an objective's other bases: with a `disguise`, every row comes twice, the plain voice, of which the
    targets are, and the one that is heard. Without, `plain` and `heard` give all rows."""

    disguise: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None

    def views(self, wave: Tensor, sample_rate: int, chance: torch.Generator) -> list[Tensor]:
        """As `Objective`'s."""
        return [wave] if self.disguise is None else [wave, disguised(wave, sample_rate, self.disguise, chance)]

    def plain(self, rows: Tensor) -> Tensor:
        """Rows of the batch whose voice is as it was."""
        return rows if self.disguise is None else rows[::2]

    def heard(self, rows: Tensor) -> Tensor:
        """Rows that the encoder hears."""
        return rows if self.disguise is None else rows[1::2]


def disguised(
    wave: Tensor, sample_rate: int, recipe: Mapping[str, Any] | Sequence[Mapping[str, Any]], chance: torch.Generator
) -> Tensor:
    """A row [samples] by a recipe of `vivavoce.data.augment`, as long as it was."""
    from vivavoce.data.augment import augment

    seed = int(torch.randint(2**62, (), generator=chance))
    made = augment(wave.numpy(), sample_rate, recipe, np.random.default_rng(seed))
    other = torch.from_numpy(np.ascontiguousarray(made, np.float32))
    return F.pad(other, (0, max(0, len(wave) - len(other))))[: len(wave)]
