"""BigCodec: one large codebook at 80 codes a second, between wide stacks that end in LSTMs.

Source: Xin et al., arXiv:2409.05377; Aria-K-Alethia/BigCodec, vq/codec_encoder.py and codec_decoder.py. The stacks are
DAC's with anti-aliased activations; the codebook is looked up by angle in 8 dimensions. The convolutions look ahead,
the LSTMs run forward only, so that it streams, late.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.snake_stack import SnakeConfig, centred, downward, upward
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.nn.antialiased import antialiased_snake
from vivavoce.nn.lstm import LSTM
from vivavoce.nn.streaming import Chain, Streaming


@dataclass(frozen=True)
class BigCodecConfig(SnakeConfig):
    """The stacks' sizes as published, 159 million parameters. lstm: layers at the inner ends of both stacks."""

    sample_rate: int = 16000
    encoder_dim: int = 48
    encoder_rates: tuple[int, ...] = (2, 2, 2, 5, 5)
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (5, 5, 2, 2, 2)
    latent_dim: int | None = 1024
    codebooks: int = 1
    codebook_size: int = 8192
    lstm: int = 2


def _memory(config: BigCodecConfig, width: int) -> list[Streaming]:
    return [LSTM(width, config.lstm)] if config.lstm else []


def encoder(config: BigCodecConfig) -> Chain:
    """Waveform [B, S, 1] -> latents [B, ceil(S / hop), latent_dim]; zeros fill the last hop."""
    width = config.encoded
    parts = [*downward(config, activate=antialiased_snake), *_memory(config, width), antialiased_snake(width)]
    return Chain(WholeFrames(config.hop, 1), *parts, centred(width, config.latent_dim or width, 3))


def decoder(config: BigCodecConfig) -> Chain:
    """Latents [B, T, latent_dim] -> waveform [B, T x hop, 1]."""
    width = config.decoder_dim
    first = [centred(config.latent_dim or config.encoded, width, 7), *_memory(config, width)]
    return Chain(*first, *upward(config, activate=antialiased_snake))


def build_bigcodec(options: Mapping[str, Any] | BigCodecConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, BigCodecConfig) else BigCodecConfig.of(options)
    kind = {"kind": "factorized_rvq", **config.quantizer}
    quantizer = quantizer_of(config.latent_dim or config.encoded, config.codebooks, config.codebook_size, kind)
    return Codec(encoder(config), quantizer, decoder(config), config.sample_rate, config=config)
