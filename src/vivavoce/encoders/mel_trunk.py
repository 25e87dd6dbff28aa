"""Encoders over stacked log-mel frames: what TERA and APC learn with, and what a CPU pre-trains.

The local half has no weights: Kaldi's filter bank, each utterance brought to zero mean and unit variance in every band,
`stack` frames side by side. The other half is a transformer, recurrent layers that hear the past only, or convolutions
that hear a few frames around. (A conformer over the same frames: `encoders.conformer`.)
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.kaldi import kaldi_fbank, kaldi_frames
from vivavoce.encoders.base import Layer, Trunk
from vivavoce.encoders.positions import PositionConvolution
from vivavoce.encoders.speech_transformer import (
    Block,
    SpeechTransformerConfig,
    feedforward_outputs,
    through_blocks,
)
from vivavoce.errors import RecipeError
from vivavoce.nn.positions import SinusoidalPositions
from vivavoce.nn.streaming import valid, zero_padding


class MelTrunk(Trunk):
    """Base: waveforms -> `stack` frames of `mels` bands side by side, 100 / stack a second, each projected to `width`.

    What is left behind the last whole stack is dropped. every: of so many frames only the first is heard. normalize:
    see above; without it, log energies as they are; "sample": the variance is that of a sample, with T - 1. fbank:
    further options of `kaldi_fbank`.
    """

    def __init__(
        self,
        width: int,
        mels: int = 80,
        stack: int = 2,
        every: int = 1,
        normalize: bool | Literal["sample"] = True,
        fbank: Mapping[str, Any] | None = None,
        sample_rate: int = 16000,
    ):
        super().__init__()
        if min(stack, every, mels) < 1:
            raise RecipeError(f"mels {mels}, stack {stack}, every {every}: each is at least 1")
        if normalize not in (True, False, "sample"):
            raise RecipeError(f"normalize: {normalize!r} is none of true, false, sample")
        self.mels, self.stack, self.every = mels, stack, every
        self.normalize, self.fbank = normalize, dict(fbank or {})
        self.sample_rate, self.width, self.local_width = sample_rate, width, mels * stack
        self.hop = sample_rate // 100 * stack * every
        self.frame_rate = sample_rate / self.hop
        self.projection: nn.Module = nn.Linear(self.local_width, width)

    def frames(self, samples):
        return -(-kaldi_frames(samples, self.sample_rate) // self.every) // self.stack

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mel = kaldi_fbank(wave, self.sample_rate, self.mels, **self.fbank)
        counts = kaldi_frames(lengths, self.sample_rate)
        if self.normalize:
            mel = normed(mel, counts, less=int(self.normalize == "sample"))
        mel, counts = mel[:, :: self.every], -(-counts // self.every)
        size = max(mel.shape[1] // self.stack, 1)
        mel = F.pad(mel, (0, 0, 0, max(0, size * self.stack - mel.shape[1])))[:, : size * self.stack]
        counts = counts // self.stack
        stacked = mel.reshape(len(mel), size, self.local_width).to(next(self.parameters()).dtype)
        return zero_padding(stacked, counts), counts

    def embed(self, frames: Tensor) -> Tensor:
        return self.projection(frames)


def normed(frames: Tensor, counts: Tensor, less: int = 0) -> Tensor:
    """Frames [B, T, D], every dimension of zero mean and unit variance over the row's own frames; zero beyond them.

    less: by how much the divisor of the variance is less than their number.
    """
    inside = valid(counts, frames.shape[1])[..., None]
    count = counts.clamp(min=1).view(-1, 1, 1)
    mean = (frames * inside).sum(1, keepdim=True) / count
    centred = (frames - mean) * inside
    return centred * (centred.square().sum(1, keepdim=True) / (count - less).clamp(min=1) + 1e-5).rsqrt()


class MelTransformer(MelTrunk):
    """A transformer over mel frames. positions: `convolution`, as wav2vec 2.0 has them, `sinusoidal`, or `pairs` of
    sines and cosines (TERA's)."""

    def __init__(
        self,
        width: int = 768,
        layers: int = 3,
        heads: int = 12,
        hidden: int = 3072,
        positions: str = "convolution",
        position_kernel: int = 128,
        position_groups: int = 16,
        stable: bool = False,
        epsilon: float = 1e-5,
        dropout: float = 0.0,
        layer_drop: float = 0.0,
        **front: Any,
    ):
        super().__init__(width, **front)
        if positions not in ("convolution", "sinusoidal", "pairs"):
            raise RecipeError(f"positions: {positions!r} is none of convolution, sinusoidal, pairs")
        self.config = SpeechTransformerConfig(
            width=width, layers=layers, heads=heads, hidden=hidden, stable=stable, dropout=dropout,
            position_kernel=position_kernel, position_groups=position_groups, layer_drop=layer_drop, epsilon=epsilon,
        )  # fmt: skip
        self.layers = layers
        self.position: SinusoidalPositions | PositionConvolution = (
            PositionConvolution(width, position_kernel, position_groups) if positions == "convolution"
            else SinusoidalPositions(width, positions == "pairs")
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, epsilon)
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(layers))

    def place(self, x: Tensor, counts: Tensor) -> Tensor:
        x = zero_padding(x, counts)
        if isinstance(self.position, SinusoidalPositions):
            at = torch.arange(x.shape[1], device=x.device)[None]
            x = x + self.position(at).to(x)
        else:
            x = x + self.position(x, counts)
        if not self.config.stable:
            x = self.norm(x)
        return F.dropout(x, self.config.dropout, self.training)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        y = through_blocks(self.blocks, x, counts, layer, None, self.config.layer_drop if self.training else 0.0)
        return self.norm(y) if self.config.stable and layer is None else y

    def feedforwards(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        return feedforward_outputs(self.blocks, lambda: self.context(x, counts))


class MelRecurrent(MelTrunk):
    """Gated recurrent layers over mel frames, with a skip over every layer but the first (APC, arXiv:1910.12607).

    They hear the past only. residual: whether there are skips. direct: the first layer hears the mel frames themselves,
    which then are the first values of the `width` of each frame before it, and zeros follow.
    """

    def __init__(
        self,
        width: int = 512,
        layers: int = 3,
        residual: bool = True,
        direct: bool = False,
        dropout: float = 0.0,
        **front: Any,
    ):
        super().__init__(width, **{"stack": 1, **front})
        if direct and self.local_width > width:
            raise RecipeError(f"direct: mel frames of {self.local_width} values do not fit a width of {width}")
        self.layers, self.residual, self.direct, self.dropout = layers, residual, direct, dropout
        if direct:
            self.projection = nn.ZeroPad1d((0, width - self.local_width))
        inputs = [self.local_width if direct else width, *[width] * (layers - 1)]
        self.recurrent = nn.ModuleList(nn.GRU(each, width, batch_first=True) for each in inputs)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        outputs = [zero_padding(x, counts)]
        for number, part in enumerate(list(self.recurrent)[: layer if isinstance(layer, int) else None]):
            heard = outputs[-1][..., : part.input_size]
            y = F.dropout(part(heard)[0], self.dropout, self.training)
            outputs.append(y + outputs[-1] if self.residual and number else y)
        return torch.stack(outputs, dim=1) if layer == "all" else outputs[-1]


class MelConvolutions(MelTrunk):
    """Residual convolutions over mel frames: each hears `layers` x (`kernel` - 1) / 2 frames on either side, so that
    what stands far away changes nothing. `hidden` channels within a block, GELU behind its convolution; a norm last."""

    def __init__(
        self, width: int = 256, layers: int = 3, kernel: int = 5, hidden: int = 512, dropout: float = 0.0, **front: Any
    ):
        super().__init__(width, **{"stack": 1, **front})
        if kernel % 2 == 0:
            raise RecipeError(f"kernel {kernel}: an odd number of frames")
        self.layers, self.dropout = layers, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.wide = nn.ModuleList(nn.Conv1d(width, hidden, kernel, padding=kernel // 2) for _ in range(layers))
        self.back = nn.ModuleList(nn.Linear(hidden, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        outputs = [zero_padding(x, counts)]
        wanted = layer if isinstance(layer, int) else self.layers
        for norm, wide, back in list(zip(self.norms, self.wide, self.back))[:wanted]:
            heard = zero_padding(norm(outputs[-1]), counts)
            y = back(F.gelu(wide(heard.mT).mT))
            outputs.append(outputs[-1] + F.dropout(y, self.dropout, self.training))
        if layer == "all":
            return torch.stack(outputs, dim=1)
        return self.norm(outputs[-1]) if layer is None else outputs[-1]

    def feedforwards(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        every = self.context(x, counts, "all").unbind(1)
        return [after - before for before, after in pairwise(every)]
