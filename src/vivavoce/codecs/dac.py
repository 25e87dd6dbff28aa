"""DAC, the Descript Audio Codec: Snake stacks around a residual quantizer that looks up directions in 8 dimensions.

Source: Kumar et al., arXiv:2306.06546; dac/model/dac.py of descript-audio-codec 1.0.0. It is not causal: the encoder at
44.1 kHz looks 3,733 samples ahead, and a stream of frames follows its input by that much, with the same codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.snake_stack import SnakeConfig, centred, downward, snake, upward
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.nn.streaming import Chain, Streaming


@dataclass(frozen=True)
class DACConfig(SnakeConfig):
    """The stacks' sizes, and `codebooks`, all of which encoding gives unless told otherwise."""

    codebooks: int = 9


def encoder(config: DACConfig) -> Chain:
    """Waveform [B, S, 1] -> latents [B, ceil(S / hop), latent_dim]; zeros fill the last hop, as `preprocess` does."""
    width = config.encoded
    last = centred(width, config.latent_dim or width, 3)
    return Chain(WholeFrames(config.hop, 1), *downward(config), snake(width), last)


def decoder(config: DACConfig) -> Chain:
    """Latents [B, T, latent_dim] -> waveform [B, T x hop, 1].

    Odd strides (16 and 24 kHz) leave the reference's waveform some samples short of T x hop: these are zeros here.
    """
    first = centred(config.latent_dim or config.encoded, config.decoder_dim, 7)
    odd = any(rate % 2 for rate in config.decoder_rates)
    rest: list[Streaming] = [WholeFrames(config.hop, 1)] if odd else []
    return Chain(first, *upward(config, short=True), *rest)


def build_dac(options: Mapping[str, Any] | DACConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, DACConfig) else DACConfig.of(options)
    width = config.latent_dim or config.encoded
    kind = {"kind": "factorized_rvq", **config.quantizer}
    quantizer = quantizer_of(width, config.codebooks, config.codebook_size, kind)
    return Codec(encoder(config), quantizer, decoder(config), config.sample_rate, config=config)
