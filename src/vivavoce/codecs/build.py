"""From a codec's options, as a recipe gives them, to an untrained codec."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vivavoce.codecs import seanet
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.seanet import SEANetConfig
from vivavoce.errors import RecipeError
from vivavoce.quantizers import build_quantizer


@dataclass(frozen=True)
class CodecConfig(SEANetConfig):
    """SEANet's switches, and what stands between its two stacks. Defaults: causal, streaming by the frame.

    codebooks, codebook_size: of the residual quantizer; `quantizer` names another `kind` or further options.
    """

    sample_rate: int = 16000
    codebooks: int = 8
    codebook_size: int = 1024
    quantizer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "CodecConfig":
        """From a mapping; `RecipeError` names a key that is unknown."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = [key for key in options if key not in known]
        if unknown:
            raise RecipeError(f"codec: '{unknown[0]}' is unknown; there are {', '.join(sorted(known))}")
        return cls(**options)


def build_codec(options: Mapping[str, Any] | CodecConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, CodecConfig) else CodecConfig.of(options)
    quantizer = build_quantizer(
        {
            "kind": "rvq",
            "width": config.dim,
            "codebooks": config.codebooks,
            "codebook_size": config.codebook_size,
            **config.quantizer,
        }
    )
    return Codec(seanet.encoder(config), quantizer, seanet.decoder(config), config.sample_rate, config.channels)
