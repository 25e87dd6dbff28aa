"""Units of segments, as long as syllables: SyllableLM's tokens (arXiv:2410.04029), five to eight a second.

A signal's frames are cut where they change; a segment's mean has the number of the group in which its nearest k-means
center is.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vivavoce.encoders.base import Encoder
from vivavoce.encoders.segments import Cut, pooled
from vivavoce.encoders.streaming import StreamingEncoder
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.nn.streaming import lengths_of
from vivavoce.quantizers import nearest
from vivavoce.quantizers.agglomerate import agglomerate
from vivavoce.schema.arguments import arguments_of


class SegmentUnits(UnitTokenizer):
    """Waveform -> one code a frame, the same one for all frames of a segment; runs of equal codes are the tokens.

    centers [C, D] are of segments' vectors (`segments.pooled`); groups: [C] int64, the unit of each center, by Ward's
    rule whenever centers are taken. cut: options of `segments.Cut`. A signal is cut as a whole, a long one piece by
    piece: encoders that answer frame by frame cannot be used.
    """

    groups: Tensor

    def __init__(
        self,
        encoder: Encoder,
        centers: Tensor,
        groups: Tensor,
        layer: int | None = None,
        config: Mapping[str, Any] | None = None,
        scale: Tensor | None = None,
        int8: str | None = None,
        cut: Mapping[str, Any] | None = None,
    ):
        super().__init__(encoder, centers, layer, config, scale, int8)
        if isinstance(encoder, StreamingEncoder):
            raise RecipeError("segments: this encoder answers frame by frame; they need one that hears whole signals")
        self.cut = Cut(**arguments_of(Cut, error=RecipeError).check(cut or {}, "segments"))
        if groups.shape != (len(centers),) or int(groups.min()) < 0:
            raise CheckpointError(f"groups {tuple(groups.shape)} of {len(centers)} centers: a number for each expected")
        self.clusters = int(groups.max()) + 1
        self.register_buffer("groups", groups.long())

    @property
    def codebook_size(self) -> int:
        """Number of units."""
        return self.clusters

    def segments(self, frames: Tensor) -> tuple[Tensor, list[int]]:
        """One signal's frames [T, D] -> the units of its segments [N], and the borders, 0 and T among them."""
        borders = self.cut.borders(frames, self.frame_rate)
        vectors = pooled(frames, borders) * self.scale
        return self.groups[nearest(vectors, self.centers)], borders

    def label(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        codes = frames.new_zeros(frames.shape[:2], dtype=torch.int64)
        for row, (values, count) in enumerate(zip(frames, lengths_of(frames, lengths).tolist())):
            units, borders = self.segments(values[:count])
            sizes = torch.tensor(borders, device=frames.device).diff()
            codes[row, :count] = units.repeat_interleave(sizes)
        return codes

    def points(self, frames: Tensor) -> Tensor:
        return pooled(frames, self.cut.borders(frames, self.frame_rate))

    def take(self, centers: Tensor, scale: Tensor) -> None:
        super().take(centers, scale)
        self.groups.copy_(agglomerate(self.centers, self.clusters))

    def about(self) -> dict[str, Any]:
        return {"segments": asdict(self.cut)}

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "groups": self.groups}
