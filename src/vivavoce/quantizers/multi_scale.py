"""Multi-scale residual vector quantization: coarse levels have fewer codes than fine ones (SNAC)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.quantizers.factorized import FactorizedResidualVectorQuantizer


class MultiScaleVectorQuantizer(FactorizedResidualVectorQuantizer):
    """Factorized codebooks in series, each at a rate of its own (SNAC, arXiv:2410.14411; snac/vq.py).

    strides: latents for which each level has one code: their mean is quantized, the result is repeated for all of them.
    A frame is the least that every level divides, `latents` = lcm(strides) of them side by side: frames
    [B, T, width = latents x D]. Level k has ratios[k] = latents / strides[k] codes in a frame; codes are
    [B, K, T x max(ratios)], the codes of each level in order, -1 behind the slower ones and beyond a row's length.
    Other options are those of `FactorizedResidualVectorQuantizer`.
    """

    def __init__(
        self,
        width: int,
        strides: Sequence[int] = (4, 2, 1),
        codebook_size: int | Sequence[int] = 4096,
        codebooks: int | None = None,
        **options: Any,
    ):
        self.strides = tuple(strides)
        if not self.strides or min(self.strides) < 1 or codebooks not in (None, len(self.strides)):
            raise RequestError(f"strides {list(strides)}: one for each of the codebooks, at least 1")
        self.latents = math.lcm(*self.strides)
        if width % self.latents:
            raise RequestError(f"frames of width {width} do not hold {self.latents} latents of one width")
        super().__init__(width, len(self.strides), codebook_size, **options)

    @property
    def ratios(self) -> tuple[int, ...]:
        """Codes of each level in a frame."""
        return tuple(self.latents // stride for stride in self.strides)

    def _parts(self, latents):
        return latents.unflatten(2, (self.latents, -1))

    def _pooled(self, residual, level):
        return residual.unflatten(2, (-1, self.strides[level])).mean(3)

    def _spread(self, points, level):
        return points.repeat_interleave(self.strides[level], dim=2)

    def _joined(self, codes, inside):
        blank = False if codes[0].dtype == torch.bool else -1
        longest = inside.shape[1] * max(level.shape[2] for level in codes)
        rows = [torch.where(inside[..., None], level, blank).flatten(1) for level in codes]
        return torch.stack([F.pad(row, (0, longest - row.shape[1]), value=blank) for row in rows], dim=1)

    def _codes(self, codes, level):
        return self._cells(codes)[level].clamp(min=0)

    def _cells(self, codes: Tensor) -> list[Tensor]:
        """Codes [B, K, T x most] as a tensor [B, T, ratio] for each level."""
        ratios = self.ratios[: codes.shape[1]]
        frames = codes.shape[2] // max(ratios)
        return [codes[:, k, : frames * ratio].unflatten(1, (frames, ratio)) for k, ratio in enumerate(ratios)]

    def check_codes(self, codes: Tensor) -> None:
        """As any quantizer's; besides, frames must be whole, and blank ones stand at a row's end only."""
        super().check_codes(torch.where(codes == -1, 0, codes))
        most = max(self.ratios[: codes.shape[1]])
        if codes.shape[2] % most:
            raise RequestError(f"codes {tuple(codes.shape)}: a frame has {most} of the fastest level")
        blank = [level == -1 for level in self._cells(codes)]
        empty = blank[0].all(2)
        torn = [(level != empty[..., None]).any() for level in blank]
        if bool(torch.stack([*torn, (empty[:, :-1] & ~empty[:, 1:]).any()]).any()):
            raise RequestError("codes of -1: a frame at the end of a row may lack all of its codes, no other any")
