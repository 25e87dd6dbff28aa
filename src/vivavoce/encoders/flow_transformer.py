"""SpeechFlow's network: where noisy mel frames flow to, told what is known of them; and the encoder that it is.

Sources: Liu et al., arXiv:2310.16338, section 3 (SpeechFlow); the transformer is Voicebox's (arXiv:2306.15687,
section 4: positions by a convolution and by symmetric ALiBi, the moment as one more frame, outputs of the first half of
the blocks joined to inputs of the second), as its mean and deviation of mel frames are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.mel import mel_filters
from vivavoce.encoders.base import Layer, Trunk
from vivavoce.encoders.positions import PositionConvolution
from vivavoce.encoders.relative_bias import LinearBias
from vivavoce.encoders.speech_transformer import Block, SpeechTransformerConfig
from vivavoce.errors import RecipeError
from vivavoce.nn.positions import SinusoidalPositions
from vivavoce.nn.streaming import valid, zero_padding

MEAN, DEVIATION = -5.8843, 2.2615  # of log mel magnitudes of speech
WINDOW, FLOOR, MOMENTS = 1024, 1e-5, 1000.0


def log_mel(wave: Tensor, sample_rate: int, hop: int, mels: int = 80) -> Tensor:
    """Waveforms [B, samples] -> [B, ceil(samples / hop), mels]: log mel magnitudes of mean 0 and variance 1 in speech.

    As HiFi-GAN's vocoders have them (windows of 1024, Slaney's filters to half the rate, at least ln 1e-5), zeros
    before and behind the signal.
    """
    edge, missing = (WINDOW - hop) // 2, -wave.shape[1] % hop
    padded = F.pad(wave.float(), (edge, missing + WINDOW - hop - edge))
    spectrum = torch.fft.rfft(padded.unfold(1, WINDOW, hop) * torch.hann_window(WINDOW, device=wave.device))
    filters = mel_filters(sample_rate, WINDOW, mels, scale="slaney", area=True)
    magnitude = spectrum.abs() @ torch.from_numpy(filters).to(wave.device).T
    return (magnitude.clamp(min=FLOOR).log() - MEAN) / DEVIATION


class FlowNet(nn.Module):
    """Velocities [B, T, mels] of noisy mel frames [B, T, mels], told frames [B, T, told], at moments [B] in 0 .. 1."""

    def __init__(
        self,
        told: int = 80,
        mels: int = 80,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
        hidden: int = 4096,
        position_kernel: int = 31,
        position_groups: int = 16,
        dropout: float = 0.0,
    ):
        super().__init__()
        if layers < 1 or mels < 1:
            raise RecipeError(f"flow: layers {layers}, mels {mels}: at least one")
        config = SpeechTransformerConfig(width=width, layers=layers, heads=heads, hidden=hidden, stable=True,
                                         position_groups=position_groups, dropout=dropout)  # fmt: skip
        self.mels, joined = mels, layers // 2
        self.projection = nn.Linear(mels + told, width)
        self.position = PositionConvolution(width, position_kernel, position_groups)
        self.moment = SinusoidalPositions(width)
        self.bias = LinearBias(heads, layers, learned=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(layers))
        self.joins = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(joined))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, mels)

    def forward(self, noisy: Tensor, told: Tensor, times: Tensor, counts: Tensor) -> Tensor:
        """See the class; counts [B] frames of each row are valid."""
        x = self.projection(torch.cat([noisy, told], dim=-1))
        return self.out(self.norm(self.through(self.place(x, counts), counts, times)))

    def place(self, x: Tensor, counts: Tensor) -> Tensor:
        """Frames [B, T, D] with their positions told."""
        x = zero_padding(x, counts)
        return x + self.position(x, counts)

    def through(self, x: Tensor, counts: Tensor, times: Tensor, layer: Layer = None) -> Tensor:
        """Placed frames [B, T, D] through the blocks; `layer` as `Encoder.features` has it."""
        at = torch.arange(x.shape[1], device=x.device)[None]
        y = torch.cat([self.moment(times[:, None] * MOMENTS).to(x), x], dim=1)  # the moment stands at no distance
        mask = valid(counts + 1, y.shape[1])[:, None, None]
        outputs, joined = [x], len(self.joins)
        first: list[Tensor] = []
        blocks = self.blocks[: layer if isinstance(layer, int) else None]
        for number, (block, bias) in enumerate(zip(blocks, self.bias(at))):
            behind = number - (len(self.blocks) - joined)
            if behind >= 0:
                y = self.joins[behind](torch.cat([y, first.pop()], dim=-1))
            y = block(y, mask, F.pad(bias, (1, 0, 1, 0)))
            if number < joined:
                first.append(y)
            outputs = [*outputs, y[:, 1:]] if layer == "all" else [y[:, 1:]]
        return torch.stack(outputs, dim=1) if layer == "all" else outputs[-1]

    @torch.no_grad()
    def flow(self, noise: Tensor, told: Tensor, counts: Tensor, steps: int = 16) -> Tensor:
        """Noise [B, T, mels] to mel frames, by so many steps of the midpoint rule."""
        y, size = noise, 1 / steps
        for step in range(steps):
            here, middle = (torch.full((len(y),), (step + part) * size, device=y.device) for part in (0, 0.5))
            half = y + size / 2 * self(y, told, here, counts)
            y = y + size * self(half, told, middle, counts)
        return y


class FlowTransformer(Trunk):
    """Waveforms [B, samples] -> frames [B, T, width], 100 a second: a `FlowNet` at the end of the way, where nothing is
    noise, told all of its mel frames. net: its sizes."""

    def __init__(self, sample_rate: int = 16000, mels: int = 80, **net: Any):
        super().__init__()
        self.net = FlowNet(mels, mels, **net)
        self.sample_rate, self.hop, self.local_width = sample_rate, sample_rate // 100, mels
        self.frame_rate = sample_rate / self.hop
        self.width, self.layers = self.net.norm.normalized_shape[0], len(self.net.blocks)

    def frames(self, samples):
        return -(-samples // self.hop)

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts = self.frames(lengths)
        longer = F.pad(wave, (0, max(0, 1 - wave.shape[1])))
        mel = log_mel(longer, self.sample_rate, self.hop, self.local_width)
        return zero_padding(mel.to(self.net.out.weight.dtype), counts), counts

    def embed(self, frames: Tensor) -> Tensor:
        return self.net.projection(torch.cat([frames, frames], dim=-1))

    def place(self, x: Tensor, counts: Tensor) -> Tensor:
        return self.net.place(x, counts)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        y = self.net.through(x, counts, torch.ones(len(x), device=x.device), layer)
        return self.net.norm(y) if layer is None else y
