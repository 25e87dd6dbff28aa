"""MR-HuBERT's encoder: transformer blocks at two rates, those in the middle at half the others' (arXiv:2310.02720)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Layer, Trunk
from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig, through_blocks
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import zero_padding


@dataclass(frozen=True)
class MultiResolutionConfig(SpeechTransformerConfig):
    """parts: how many blocks there are before the rate is halved, at half the rate, and behind; `layers` in all."""

    parts: tuple[int, int, int] = (4, 4, 4)

    def __post_init__(self):
        super().__post_init__()
        if len(self.parts) != 3 or min(self.parts) < 1 or sum(self.parts) != self.layers:
            raise RecipeError(f"parts {list(self.parts)}: three numbers from 1 up, whose sum is layers ({self.layers})")
        if self.relative_buckets:
            raise RecipeError("relative_buckets: two rates have no relative positions in common")


class MultiResolution(SpeechTransformer):
    """Waveforms [B, samples] -> frames [B, T, width], as a `SpeechTransformer`.

    Pairs of frames are mapped to one, and each of these back to a pair, which is added to what was there before. The
    output of a block in the middle is given at the full rate, each frame twice; `middle`: the number of the last one.
    """

    config: MultiResolutionConfig

    def __init__(self, config: MultiResolutionConfig):
        super().__init__(config)
        self.middle = config.parts[0] + config.parts[1]
        self.join, self.part = nn.Linear(2 * config.width, config.width), nn.Linear(config.width, 2 * config.width)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        first, size, drop = self.config.parts[0], x.shape[1], self.config.layer_drop if self.training else 0.0
        before = through_blocks(self.blocks[:first], x, counts, "all", None, drop)
        y = zero_padding(before[:, -1], counts)
        pairs = F.pad(y, (0, 0, 0, size % 2)).unflatten(1, (-1, 2)).flatten(2)
        low = through_blocks(self.blocks[first : self.middle], self.join(pairs), (counts + 1) // 2, "all", None, drop)
        apart = self.part(low[:, -1]).unflatten(2, (2, -1)).flatten(1, 2)[:, :size]
        after = through_blocks(self.blocks[self.middle :], y + apart, counts, "all", None, drop)
        twice = low[:, 1:].repeat_interleave(2, dim=2)[:, :, :size]
        every = torch.cat([before, twice, after[:, 1:]], dim=1)
        if layer == "all":
            return every
        if isinstance(layer, int):
            return every[:, layer]
        return self.norm(every[:, -1]) if self.config.stable else every[:, -1]

    def feedforwards(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        return Trunk.feedforwards(self, x, counts)
