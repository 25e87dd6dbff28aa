"""X-Codec: acoustic and semantic features side by side go into one residual quantizer.

Source: Ye et al., arXiv:2408.17175; transformers' XcodecModel. The acoustic branch is DAC's, its strides in the order
of the decoder's (8, 5, 4, 2), as the published models have it; the semantic branch is the mean over all layers of a
frozen self-supervised encoder, through a few convolutions. The encoder attends to all of the signal, so it answers at
its end; the decoder streams.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.feature_codec import encoder_of
from vivavoce.codecs.snake_stack import SnakeConfig, centred, downward, snake, upward
from vivavoce.codecs.two_branches import TwoBranches, even
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming


@dataclass(frozen=True)
class XCodecConfig(SnakeConfig):
    """The acoustic stacks' sizes as published. semantic: an encoder as recipes name it (HuBERT base unless told
    otherwise), whose frames come at the codec's rate. kernel, unit_kernel: of the semantic convolutions and of their
    residual units; block_dilations: of these, in each of `blocks` blocks."""

    sample_rate: int = 16000
    encoder_rates: tuple[int, ...] = (8, 5, 4, 2)
    decoder_dim: int = 1024
    decoder_rates: tuple[int, ...] = (8, 5, 4, 2)
    latent_dim: int | None = 256
    codebooks: int = 8
    semantic: Mapping[str, Any] = field(default_factory=lambda: {"kind": "hubert"})
    kernel: int = 3
    unit_kernel: int = 3
    blocks: int = 2
    block_dilations: tuple[int, ...] = (1, 1)

    @property
    def acoustic(self) -> int:
        """Width of the acoustic features."""
        return self.latent_dim or self.encoded


def _units(config: XCodecConfig, width: int) -> list[Streaming]:
    return [
        Residual(
            Chain(
                Pointwise(nn.ELU(), width),
                even(width, width, config.unit_kernel, dilation, bias=False),
                Pointwise(nn.ELU(), width),
                even(width, width, 1, bias=False),
            )
        )
        for dilation in config.block_dilations
    ]


def semantic_chain(config: XCodecConfig, width: int) -> Chain:
    """What the semantic features [B, T, width] go through before they meet the acoustic ones."""
    parts: list[Streaming] = [even(width, width, config.kernel, bias=False)]
    for _ in range(config.blocks):
        parts += [*_units(config, width), even(width, width, 3)]
    return Chain(*parts)


def feature_decoder(config: XCodecConfig, width: int, inputs: int) -> Chain:
    """Quantized latents [B, T, inputs] -> semantic features [B, T, width], of which training makes a loss."""
    parts: list[Streaming] = [Pointwise(nn.Linear(inputs, width), width), even(width, width, config.kernel, bias=False)]
    for _ in range(config.blocks):
        parts += [even(width, width, 3), *_units(config, width)]
    return Chain(*parts, even(width, width, config.kernel, bias=False))


class XCodec(Codec):
    """X-Codec. Besides what every codec has: `feature_decoder`, which training alone uses."""

    def __init__(self, config: XCodecConfig):
        acoustic = Chain(*downward(config), snake(config.encoded), centred(config.encoded, config.acoustic, 3))
        semantic, sizes = encoder_of(config.semantic)
        config = dataclasses.replace(config, semantic=sizes)
        branches = TwoBranches(
            config.sample_rate, config.hop, acoustic, semantic, partial(semantic_chain, config), layer="all"
        )
        quantizer = quantizer_of(branches.width, config.codebooks, config.codebook_size, config.quantizer)
        first = Pointwise(nn.Linear(branches.width, config.acoustic), config.acoustic)
        last = upward(config, bounded=False)
        decoder = Chain(first, centred(config.acoustic, config.decoder_dim, 7), *last)
        super().__init__(Chain(branches), quantizer, decoder, config.sample_rate, config=config)
        self.feature_decoder = feature_decoder(config, branches.semantic.width, branches.width)

    def semantic_features(self, wave: Tensor) -> Tensor:
        """Of a waveform [B, 1, S], by the frozen encoder: [B, ceil(S / hop), width]."""
        branches: TwoBranches = self.encoder.parts[0]  # type: ignore[assignment]
        return branches.of_wave(wave)

    def decoded_features(self, latents: Tensor) -> Tensor:
        """What quantized latents [B, T, D] still tell of the semantic features: [B, T, width]."""
        return self.feature_decoder(latents)


def build_xcodec(options: Mapping[str, Any] | XCodecConfig) -> XCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return XCodec(options if isinstance(options, XCodecConfig) else XCodecConfig.of(options))
