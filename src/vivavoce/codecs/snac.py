"""SNAC: DAC's stacks with depthwise convolutions and noise, around a residual quantizer of several rates.

Source: Siuzdak et al., arXiv:2410.14411; the snac package 1.2.1. Coarse codes come once for several latents, so a frame
is several latents side by side. Windowed attention (32 and 44.1 kHz) holds a stream back by a window, the centred
convolutions by their look-ahead; its codes and samples are those of the whole signal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vivavoce.codecs.multi_rate import MultiRateCodec
from vivavoce.codecs.seeded_codec import SeededCodec
from vivavoce.codecs.snake_stack import SnakeConfig, centred, downward, upward
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import RecipeError
from vivavoce.nn.local_attention import LocalAttention
from vivavoce.nn.noise import Noise
from vivavoce.nn.stacking import Stack, Unstack
from vivavoce.nn.streaming import Chain, Streaming
from vivavoce.quantizers import build_quantizer

HEAD = 64  # channels of a head of attention


@dataclass(frozen=True)
class SNACConfig(SnakeConfig):
    """The stacks' sizes, and what SNAC adds to them.

    vq_strides: latents for which each level has one code. attn_window_size: latents in a window of attention, at the
    inner ends of both stacks; None: no attention. noise: noise behind every stride of the decoder. depthwise: the
    convolutions of kernel 7 do not mix channels, but for the first and last at the waveform.
    """

    encoder_rates: tuple[int, ...] = (3, 3, 7, 7)
    decoder_rates: tuple[int, ...] = (7, 7, 3, 3)
    codebook_size: int = 4096
    vq_strides: tuple[int, ...] = (8, 4, 2, 1)
    attn_window_size: int | None = 32
    noise: bool = True
    depthwise: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.vq_strides or min(self.vq_strides) < 1:
            raise RecipeError(f"vq_strides {list(self.vq_strides)}: at least 1 latent for a code of each level")
        if "strides" in self.quantizer:
            raise RecipeError("quantizer.strides: a SNAC's are its vq_strides")
        if self.latent_dim not in (None, self.encoded):
            raise RecipeError(f"latent_dim {self.latent_dim}: SNAC's encoder gives {self.encoded}")
        if self.attn_window_size and (self.encoded % HEAD or self.decoder_dim % HEAD):
            raise RecipeError(f"attention has heads of {HEAD}: {self.encoded} and {self.decoder_dim} are no multiples")

    @property
    def latents(self) -> int:
        """Latents in a frame of codes."""
        return math.lcm(*self.vq_strides)

    @property
    def padded(self) -> int:
        """Samples of which zeros make the signal a multiple, as the package's `preprocess` does."""
        return self.hop * math.lcm(self.latents, self.attn_window_size or 1)


def encoder(config: SNACConfig) -> Chain:
    """Waveform [B, S, 1] -> frames [B, T, latents x latent_dim], T = latents of the padded signal / `latents`."""
    width = config.encoded
    last = centred(width, width, 7, groups=width if config.depthwise else 1)
    parts = [WholeFrames(config.padded, 1), *downward(config, config.depthwise), *_attention(config, width), last]
    return Chain(*parts, Stack(width, config.latents, complete=True))


def decoder(config: SNACConfig) -> Chain:
    """Frames [B, T, latents x latent_dim] -> waveform [B, T x latents x hop, 1]."""
    width = config.encoded
    parts: list[Streaming] = [Unstack(width * config.latents, config.latents)]
    if config.depthwise:
        parts += [centred(width, width, 7, groups=width), centred(width, config.decoder_dim, 1)]
    else:
        parts.append(centred(width, config.decoder_dim, 7))
    parts += _attention(config, config.decoder_dim)

    def behind(width: int, number: int) -> list[Streaming]:
        return [Noise(width, number)] if config.noise else []

    return Chain(*parts, *upward(config, depthwise=config.depthwise, behind=behind))


def _attention(config: SNACConfig, width: int) -> list[Streaming]:
    return [LocalAttention(width, config.attn_window_size, HEAD)] if config.attn_window_size else []


class SNAC(SeededCodec, MultiRateCodec):
    """SNAC's stacks and quantizer. Its decoder adds noise, which a row's seed decides (0 unless given): the same codes
    and seed give the same waveform, whole, in chunks and in any batch. `noise` = False leaves it out."""

    @property
    def noise(self) -> bool:
        """Whether the decoder adds noise."""
        return any(part.level for part in self.decoder if isinstance(part, Noise))

    @noise.setter
    def noise(self, wanted: bool) -> None:
        for part in self.decoder:
            if isinstance(part, Noise):
                part.level = float(wanted)


def build_snac(options: Mapping[str, Any] | SNACConfig) -> SNAC:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, SNACConfig) else SNACConfig.of(options)
    sizes = {"width": config.encoded * config.latents, "codebook_size": config.codebook_size}
    kind = {"kind": "multi_scale_rvq", **sizes, "strides": config.vq_strides, **config.quantizer}
    return SNAC(encoder(config), build_quantizer(kind), decoder(config), config.sample_rate, config=config)
