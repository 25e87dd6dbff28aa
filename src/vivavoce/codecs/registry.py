"""Codecs by kind, as recipes and codec directories name them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vivavoce.codecs.build import CodecConfig, build_codec
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.dac import DACConfig, build_dac
from vivavoce.codecs.published import PUBLISHED, PUBLISHED_DAC, PUBLISHED_SNAC
from vivavoce.codecs.snac import SNACConfig, build_snac
from vivavoce.codecs.spectral import SpectralConfig, build_spectral_codec
from vivavoce.schema.parts import build_part


def _codec(base: Mapping[str, Any], build: Callable[..., Codec] = build_codec, /, **options: Any) -> Codec:
    """The codec of `base`, but for `options`; of its quantizer and transformer too, single options can differ."""
    nested = {name: own for name, own in options.items() if own and isinstance(base.get(name), Mapping)}
    return build({**base, **options, **{name: {**base[name], **own} for name, own in nested.items()}})


def _spectral(**options: Any) -> Codec:
    return build_spectral_codec(options)


# `codec`: the SEANet family, by its switches, `dac` and `snac` likewise; a published name: with the published sizes.
CODECS: dict[str, Callable[..., Codec]] = {
    "codec": partial(_codec, {}),
    "spectral_codec": _spectral,
    **{name: partial(_codec, options) for name, options in PUBLISHED.items()},
    "dac": partial(_codec, {}, build_dac),
    **{name: partial(_codec, options, build_dac) for name, options in PUBLISHED_DAC.items()},
    "snac": partial(_codec, {}, build_snac),
    **{name: partial(_codec, options, build_snac) for name, options in PUBLISHED_SNAC.items()},
}


def codec_of(config: Mapping[str, Any]) -> Codec:
    """An untrained codec of `{"kind": …, **options}`. `RecipeError` names what is unknown."""
    return build_part("codec", CODECS, config)


def config_of(codec: Codec) -> dict[str, Any] | None:
    """What `codec_of` builds the same codec from, or None of one that was not built from a configuration."""
    kinds = {CodecConfig: "codec", SpectralConfig: "spectral_codec", DACConfig: "dac", SNACConfig: "snac"}
    kind = kinds.get(type(codec.config))
    return None if kind is None else {"kind": kind, **codec.config.options()}
