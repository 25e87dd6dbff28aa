"""MR-HuBERT's encoder: transformer blocks at two rates, those in the middle at half the others'.

Source: Shi et al., arXiv:2310.02720, section 2.2; fairseq, examples/mr_hubert (models/multires_hubert), of which S3PRL
has a copy.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Layer, Trunk
from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig, through_blocks
from vivavoce.errors import RecipeError
from vivavoce.nn.norms import SignalNorm
from vivavoce.nn.streaming import zero_padding

SKIP = math.sqrt(0.4)  # of every sum with what was there before


@dataclass(frozen=True)
class MultiResolutionConfig(SpeechTransformerConfig):
    """parts: how many blocks there are before the rate is halved, at half the rate, and behind; `layers` in all.

    rate_kernel: of the convolutions that change the rate. plain: one convolution for each change, not two.
    """

    parts: tuple[int, int, int] = (4, 4, 4)
    rate_kernel: int = 7
    plain: bool = False

    def __post_init__(self):
        super().__post_init__()
        if len(self.parts) != 3 or min(self.parts) < 1 or sum(self.parts) != self.layers:
            raise RecipeError(f"parts {list(self.parts)}: three numbers from 1 up, whose sum is layers ({self.layers})")
        if self.rate_kernel < 1 or self.rate_kernel % 2 == 0:
            raise RecipeError(f"rate_kernel {self.rate_kernel}: an odd number of frames")
        if self.relative_buckets or self.alibi is not None:
            raise RecipeError("relative_buckets, alibi: two rates have no relative positions in common")


class MultiResolution(SpeechTransformer):
    """Waveforms [B, samples] -> frames [B, T, width], as a `SpeechTransformer`.

    What the middle adds to its input is heard by the last blocks, and what the first blocks gave is added to what these
    give. The output of a block in the middle is given at the full rate, each frame twice.
    """

    config: MultiResolutionConfig

    def __init__(self, config: MultiResolutionConfig):
        super().__init__(config)
        self.middle = config.parts[0] + config.parts[1]
        sizes = config.width, config.rate_kernel, config.plain
        self.slower, self.faster = HalfRate(*sizes), HalfRate(*sizes, back=True)
        self.middle_norm, self.last_norm = (nn.LayerNorm(config.width, config.epsilon) for _ in range(2))

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        every, fast, _ = self._at_both(x, counts)
        if layer is None:
            return fast
        return every if layer == "all" else every[:, layer]

    def two_rates(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Placed frames [B, T, D] -> what comes out at the full rate [B, T, D], and half of it [B, ceil(T / 2), D]."""
        return self._at_both(x, counts)[1:]

    def _at_both(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, size, fewer = self.config.parts[0], x.shape[1], (counts + 1) // 2
        drop = self.config.layer_drop if self.training else 0.0
        before = through_blocks(self.blocks[:first], x, counts, "all", None, drop)
        given = zero_padding(self._behind(before[:, -1], self.norm), counts)
        low = self.slower(given, counts)
        middle = through_blocks(self.blocks[first : self.middle], self._before(low, self.middle_norm), fewer, "all",
                                None, drop)  # fmt: skip
        low = zero_padding(low + self._behind(middle[:, -1], self.middle_norm), fewer)
        again = self._before(self.faster(low, fewer), self.last_norm)  # an odd number of frames has got one more
        after = through_blocks(self.blocks[self.middle :], again, 2 * fewer, "all", None, drop)[:, :, :size]
        twice = middle[:, 1:].repeat_interleave(2, dim=2)[:, :, :size]
        every = torch.cat([before, twice, after[:, 1:]], dim=1)
        return every, self._behind(after[:, -1], self.last_norm) + given, low

    def _before(self, x: Tensor, norm: nn.Module) -> Tensor:
        return x if self.config.stable else norm(x)

    def _behind(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.config.stable else x

    def feedforwards(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        return Trunk.feedforwards(self, x, counts)


class HalfRate(nn.Module):
    """Frames [B, T, D] at half their rate, [B, ceil(T / 2), D], or back, [B, 2 T, D].

    A transposed convolution (of stride 2 on the way back, else 1), then a strided one (of stride 2 on the way there),
    each with a norm over the signal and GELU, and added to its input where that is at the new rate; last, the input of
    all at the new rate is added once more. Every sum is times sqrt(0.4). plain: only the one that changes the rate.
    """

    def __init__(self, width: int, kernel: int, plain: bool, back: bool = False):
        super().__init__()
        self.more, self.fewer = (2, 1) if back else (1, 2)
        self.up = self.down = self.up_norm = self.down_norm = None
        if back or not plain:
            self.up = nn.ConvTranspose1d(width, width, kernel, self.more, output_padding=self.more - 1, bias=False)
            self.up_norm = SignalNorm(width)
        if not back or not plain:
            self.down = nn.Conv1d(width, width, kernel, self.fewer, kernel // 2, bias=False)
            self.down_norm = SignalNorm(width)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x [B, T, D], zero beyond counts [B]; so is what comes out."""
        again = x.repeat_interleave(self.more, dim=1)
        y, counts = again, counts * self.more
        if self.up is not None and self.up_norm is not None:
            longer = self.up(x.mT).mT
            beyond = self.up.kernel_size[0] - 1  # its output is longer than the frames it is added to, and normed so
            normed = F.gelu(self.up_norm(longer, (counts + beyond) * (counts > 0)))
            y = zero_padding((normed[:, : again.shape[1]] + again) * SKIP, counts)
        if self.down is not None and self.down_norm is not None:
            heard = self.down(y.mT).mT
            counts = (counts + self.fewer - 1) // self.fewer
            y = (F.gelu(self.down_norm(heard, counts)) + y[:, :: self.fewer]) * SKIP
        if self.up is not None and self.down is not None:
            y = (y + again[:, :: self.fewer]) * SKIP
        return zero_padding(y, counts)
