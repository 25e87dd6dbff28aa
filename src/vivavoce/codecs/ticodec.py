"""TiCodec: what does not change in time leaves the frames, and is quantized once in groups.

Source: Ren et al., arXiv:2310.00014; y-ren16/TiCodec. The time-invariant branch hears what the encoder has made
halfway. Stacks are SEANet's here, and the decoder is told the voice at its first frames, not halfway.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs import seanet
from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.seanet import SEANetConfig
from vivavoce.codecs.voice_codec import AddVoice, VoiceCodec, VoiceQuantizer, WithVoice
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, PadMode
from vivavoce.nn.streaming import Chain, Pointwise, valid, zero_padding
from vivavoce.quantizers import build_quantizer


@dataclass(frozen=True)
class TiCodecConfig(CodecOptions, SEANetConfig):
    """SEANet's switches, without causality unless told otherwise. voice_width, voice_codes: of what comes once, and in
    how many groups of voice_size entries it is quantized. quantizer: of the frames."""

    dim: int = 512
    true_skip: bool = False
    causal: bool = False
    pad_mode: PadMode = "reflect"
    sample_rate: int = 24000
    codebooks: int = 2
    codebook_size: int = 1024
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    voice_width: int = 128
    voice_codes: int = 8
    voice_size: int = 1024

    def __post_init__(self):
        super().__post_init__()
        if self.norm != "none" or self.channels != 1:
            raise RecipeError("ticodec: the norm is 'none' and there is one channel")


class TimeInvariant(nn.Module):
    """Frames [B, T, D] -> [B, V]: three convolutions of 3 frames, their mean over time, a linear map."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        sizes = (inputs, width, width, width)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1, bias=False) for a, b in pairwise(sizes))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """lengths [B] in frames; beyond them x is not heard."""
        for conv in self.convs:
            x = F.leaky_relu(conv(zero_padding(x, lengths).transpose(1, 2)).transpose(1, 2), 0.1)
        inside = valid(lengths, x.shape[1])[..., None]
        mean = (x * inside).sum(1) / lengths.clamp(min=1)[:, None]
        return F.leaky_relu(self.project(mean), 0.1)


class TiEncoder(WithVoice):
    """Waveform [B, S, 1] -> latents [B, ceil(S / hop), dim] with the voice beside each."""

    def __init__(self, config: TiCodecConfig):
        super().__init__()
        parts = list(seanet.encoder(config))
        strides = [at for at, part in enumerate(parts) if isinstance(part, Conv) and part.stride > 1]
        middle = strides[(len(strides) - 1) // 2] + 1
        self.lower, self.upper = Chain(*parts[:middle]), Chain(*parts[middle:])
        self.voice = TimeInvariant(self.lower.width, config.voice_width)
        self.hop, self._width = Fraction(config.hop), config.dim + config.voice_width

    @property
    def width(self):
        return self._width

    def frames(self, length):
        return self.upper.frames(self.lower.frames(torch.as_tensor(length)))

    def both(self, x, lengths):
        middle, counts = self.lower(x, lengths), self.lower.frames(lengths)
        return self.upper(middle, counts), self.voice(middle, counts)


def build_ticodec(options: Mapping[str, Any] | TiCodecConfig) -> VoiceCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, TiCodecConfig) else TiCodecConfig.of(options)
    frames = quantizer_of(config.dim, config.codebooks, config.codebook_size, config.quantizer)
    count = config.voice_codes
    sizes = {"width": config.voice_width, "codebooks": count, "groups": count, "codebook_size": config.voice_size}
    voice = build_quantizer({"kind": "grouped_rvq", **sizes})
    first = Pointwise(AddVoice(config.dim, config.voice_width), config.dim)
    decoder = Chain(first, *seanet.decoder(config))
    quantizer = VoiceQuantizer(frames, voice)
    return VoiceCodec(Chain(TiEncoder(config)), quantizer, decoder, config.sample_rate, config=config)
