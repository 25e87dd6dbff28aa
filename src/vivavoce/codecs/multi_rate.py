"""Codecs whose levels differ in rate: one tensor of codes for streams and stores, a mapping of levels for the eye."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.errors import RequestError


class MultiRateCodec(Codec):
    """A codec around a quantizer with `ratios`: level k has ratios[k] codes in a frame (SNAC at 24 kHz: 1, 2, 4).

    A frame is what the slowest levels have one code for, and `frames`, `frame_rate` and `state.emitted` count these.
    Codes are [B, levels, frames x max(ratios)]: those of each level in order, then -1 as far as the fastest level goes,
    and -1 beyond a row's length. So they are a stream of one clock like any other codec's: layouts place them by their
    `ratios` (flat: 1 + 2 + 4 tokens a frame in the order of time, as in Orpheus; delayed lanes, as in Mini-Omni),
    stores and recipes cut them by these, batches pad them. A mapping of tensors does not go through any of that;
    `levels` makes one to look at, and `joined` takes one back, or a list as the snac package has it.
    """

    def __init__(self, *parts: Any, **options: Any):
        super().__init__(*parts, **options)
        if not hasattr(self.quantizer, "ratios"):
            raise RequestError(f"a {type(self.quantizer).__name__} has one rate: such a codec needs a multi_scale_rvq")

    @property
    def ratios(self) -> tuple[int, ...]:
        """Codes of each level in use in a frame."""
        return self.quantizer.ratios[: self.codebooks]  # type: ignore[index, return-value]

    @property
    def tokens_per_second(self) -> float:
        """Codes of all levels in use."""
        return self.frame_rate * sum(self.ratios)

    @property
    def bits_per_second(self) -> float:
        """Of the codes, each coded alone."""
        return self.frame_rate * sum(ratio * math.log2(size) for ratio, size in zip(self.ratios, self.codebook_sizes))

    def levels(self, codes: Tensor) -> dict[str, Tensor]:
        """Codes [B, K, T x max(ratios)] -> "level_0", "level_1", …: codes of one level [B, T x its ratio]."""
        ratios, frames = self.ratios[: codes.shape[1]], self._frames_in(codes)
        return {f"level_{k}": codes[:, k, : frames * ratio] for k, ratio in enumerate(ratios)}

    def joined(self, levels: Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
        """Codes of each level, a mapping as `levels` gives it or a list of [B, T x ratio], as one tensor.

        Raises `RequestError` where they are not of one number of frames.
        """
        rows = [levels[f"level_{k}"] for k in range(len(levels))] if isinstance(levels, Mapping) else list(levels)
        ratios = self.ratios[: len(rows)]
        counts = [row.shape[1] for row in rows]
        frames = counts[0] // ratios[0] if rows else 0
        if not ratios or len(rows) > len(ratios) or counts != [frames * ratio for ratio in ratios]:
            raise RequestError(f"levels of {counts} codes: a frame has {list(self.ratios)}")
        return torch.stack([F.pad(row, (0, max(counts) - row.shape[1]), value=-1) for row in rows], dim=1)

    def _frames_in(self, codes: Tensor) -> int:
        return codes.shape[2] // max(self.ratios[: codes.shape[1]])
