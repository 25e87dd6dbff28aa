"""DAC's encoder and a Vocos as decoder: MaskGCT's acoustic codec (arXiv:2409.00750, section 3.2.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vivavoce.codecs import dac
from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.dac import DACConfig
from vivavoce.nn.streaming import Chain
from vivavoce.vocoders.vocos import Vocos, VocosConfig


@dataclass(frozen=True)
class SnakeVocosConfig(DACConfig):
    """The encoder's sizes as DAC's; vocoder: a Vocos's width, hidden, layers, fft_size. What is said of a decoder has
    no meaning here."""

    vocoder: Mapping[str, Any] = field(default_factory=dict)


def build_snake_vocos(options: Mapping[str, Any] | SnakeVocosConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, SnakeVocosConfig) else SnakeVocosConfig.of(_undone(options))
    width = config.latent_dim or config.encoded
    kind = {"kind": "factorized_rvq", **config.quantizer}
    quantizer = quantizer_of(width, config.codebooks, config.codebook_size, kind)
    sizes = {"inputs": width, "hop": config.hop, "padding": "same", "sample_rate": config.sample_rate}
    vocoder = Vocos(VocosConfig(**{**sizes, **config.vocoder}))  # type: ignore[arg-type]
    return Codec(dac.encoder(config), quantizer, Chain(vocoder), config.sample_rate, config=config)


def _undone(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with strides of a decoder that undo the encoder's, as the stacks' sizes are checked together."""
    rates = list(options.get("encoder_rates", SnakeVocosConfig.encoder_rates))
    return {"decoder_rates": rates[::-1], "decoder_dim": 2 ** len(rates), **options}


PUBLISHED_SNAKE_VOCOS: dict[str, dict[str, Any]] = {
    # open-mmlab/Amphion, models/codec/amphion_codec: 24 kHz, 50 Hz, 12 x 1024: 6 kb/s.
    "maskgct-acoustic": {
        "sample_rate": 24000,
        "encoder_dim": 96,
        "encoder_rates": [3, 4, 5, 8],
        "latent_dim": 256,
        "codebooks": 12,
        "codebook_size": 1024,
        "quantizer": {"dropout": 0.5},
        "vocoder": {"width": 512, "hidden": 4096, "layers": 30, "fft_size": 1920},
    },
}
