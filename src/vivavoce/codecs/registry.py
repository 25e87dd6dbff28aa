"""Codecs by kind, as recipes and codec directories name them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vivavoce.codecs.bicodec import BiCodecConfig, build_bicodec
from vivavoce.codecs.bigcodec import BigCodecConfig, build_bigcodec
from vivavoce.codecs.build import CodecConfig, build_codec
from vivavoce.codecs.code_lm import code_models
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.convnext import ConvNeXtConfig, build_convnext_codec
from vivavoce.codecs.dac import DACConfig, build_dac
from vivavoce.codecs.esc import PUBLISHED_ESC, ESCConfig, build_esc
from vivavoce.codecs.facodec import PUBLISHED_FACODEC, FACodecConfig, build_facodec
from vivavoce.codecs.feature_codec import PUBLISHED_FEATURE, FeatureConfig, build_feature_codec
from vivavoce.codecs.freq_codec import PUBLISHED_FREQ_CODEC, FreqCodecConfig, build_freq_codec
from vivavoce.codecs.gull import PUBLISHED_GULL, GullConfig, build_gull
from vivavoce.codecs.hilcodec import PUBLISHED_HILCODEC, HILCodecConfig, build_hilcodec
from vivavoce.codecs.llm_codec import LLMCodecConfig, build_llm_codec
from vivavoce.codecs.mel_codec import PUBLISHED_MEL, MelCodecConfig, build_mel_codec
from vivavoce.codecs.mel_vocoder import KINDS as MEL_VOCODERS
from vivavoce.codecs.mel_vocoder import PUBLISHED_MEL_VOCODER, MelVocoderConfig, build_mel_vocoder
from vivavoce.codecs.mel_vq import PUBLISHED_MEL_VQ, MelVQConfig, build_mel_vq
from vivavoce.codecs.post_filtered import PUBLISHED_POST_FILTERED, PostFilteredConfig, build_post_filtered
from vivavoce.codecs.prompted import PUBLISHED_PROMPTED, PromptedConfig, build_prompted
from vivavoce.codecs.published import PUBLISHED, PUBLISHED_DAC, PUBLISHED_SNAC
from vivavoce.codecs.seanet_vocos import PUBLISHED_SEANET_VOCOS, SEANetVocosConfig, build_seanet_vocos
from vivavoce.codecs.semantic import PUBLISHED_SEMANTIC, SemanticConfig, build_semantic_codec
from vivavoce.codecs.semanticodec import PUBLISHED_SEMANTICODEC, SemantiCodecConfig, build_semanticodec
from vivavoce.codecs.single_codec import PUBLISHED_SINGLE_CODEC, SingleCodecConfig, build_single_codec
from vivavoce.codecs.snac import SNACConfig, build_snac
from vivavoce.codecs.snake_vocos import PUBLISHED_SNAKE_VOCOS, SnakeVocosConfig, build_snake_vocos
from vivavoce.codecs.socodec import PUBLISHED_SOCODEC, SoCodecConfig, build_socodec
from vivavoce.codecs.spectral import SpectralConfig, build_spectral_codec
from vivavoce.codecs.spectrum_codec import PUBLISHED_SPECTRUM, SpectrumConfig, build_spectrum_codec
from vivavoce.codecs.sqcodec import PUBLISHED_SQCODEC, SQCodecConfig, build_sqcodec
from vivavoce.codecs.ticodec import TiCodecConfig, build_ticodec
from vivavoce.codecs.transformer_codec import (
    PUBLISHED_TRANSFORMER,
    TransformerCodecConfig,
    build_transformer_codec,
)
from vivavoce.codecs.unicodec import PUBLISHED_UNICODEC, UniCodecConfig, build_unicodec
from vivavoce.codecs.watermark import PUBLISHED_WATERMARK, WatermarkConfig, build_watermark
from vivavoce.codecs.xcodec import XCodecConfig, build_xcodec
from vivavoce.codecs.xcodec2 import XCodec2Config, build_xcodec2
from vivavoce.schema.parts import build_part


def _codec(
    base: Mapping[str, Any],
    build: Callable[..., Codec] = build_codec,
    /,
    entropy: Mapping[str, Any] | None = None,
    **options: Any,
) -> Codec:
    """The codec of `base`, but for `options`; of its quantizer and transformer too, single options can differ.

    entropy: options of models of its codes (`code_lm.CodeModels`), which it then has as `entropy`."""
    nested = {name: own for name, own in options.items() if own and isinstance(base.get(name), Mapping)}
    codec = build({**base, **options, **{name: {**base[name], **own} for name, own in nested.items()}})
    if entropy is not None:
        codec.entropy = code_models(codec, entropy)
    return codec


def _spectral(**options: Any) -> Codec:
    return build_spectral_codec(options)


def _convnext(**options: Any) -> Codec:
    return build_convnext_codec(options)


# `codec`: the SEANet family, by its switches, `dac` and `snac` likewise; a published name: with the published sizes.
CODECS: dict[str, Callable[..., Codec]] = {
    "codec": partial(_codec, {}),
    "spectral_codec": _spectral,
    "convnext_codec": _convnext,
    **{name: partial(_codec, options) for name, options in PUBLISHED.items()},
    "dac": partial(_codec, {}, build_dac),
    **{name: partial(_codec, options, build_dac) for name, options in PUBLISHED_DAC.items()},
    "snac": partial(_codec, {}, build_snac),
    **{name: partial(_codec, options, build_snac) for name, options in PUBLISHED_SNAC.items()},
    "llm-codec": partial(_codec, {}, build_llm_codec),
}


# By configuration: what a codec directory names.
KINDS: dict[type, str] = {
    CodecConfig: "codec",
    SpectralConfig: "spectral_codec",
    ConvNeXtConfig: "convnext_codec",
    DACConfig: "dac",
    SNACConfig: "snac",
    LLMCodecConfig: "llm-codec",
}

# Further families: kind -> (configuration, how to build it, its published sizes).
FAMILIES: dict[str, tuple[type, Callable[..., Codec], Mapping[str, Mapping[str, Any]]]] = {
    "feature_codec": (FeatureConfig, build_feature_codec, PUBLISHED_FEATURE),
    "transformer_codec": (TransformerCodecConfig, build_transformer_codec, PUBLISHED_TRANSFORMER),
    "spectrum_codec": (SpectrumConfig, build_spectrum_codec, PUBLISHED_SPECTRUM),
    "mel_codec": (MelCodecConfig, build_mel_codec, PUBLISHED_MEL),
    "mel_vq": (MelVQConfig, build_mel_vq, PUBLISHED_MEL_VQ),
    "snake_vocos": (SnakeVocosConfig, build_snake_vocos, PUBLISHED_SNAKE_VOCOS),
    "ticodec": (TiCodecConfig, build_ticodec, {}),
    "bicodec": (BiCodecConfig, build_bicodec, {}),
    "bigcodec": (BigCodecConfig, build_bigcodec, {}),
    "xcodec": (XCodecConfig, build_xcodec, {}),
    "xcodec2": (XCodec2Config, build_xcodec2, {}),
    "seanet_vocos": (SEANetVocosConfig, build_seanet_vocos, PUBLISHED_SEANET_VOCOS),
    "semantic_codec": (SemanticConfig, build_semantic_codec, PUBLISHED_SEMANTIC),
    "semanticodec_parts": (SemantiCodecConfig, build_semanticodec, PUBLISHED_SEMANTICODEC),
    "hilcodec_stacks": (HILCodecConfig, build_hilcodec, PUBLISHED_HILCODEC),
    "esc_levels": (ESCConfig, build_esc, PUBLISHED_ESC),
    "gull_bands": (GullConfig, build_gull, PUBLISHED_GULL),
    "single_codec": (SingleCodecConfig, build_single_codec, PUBLISHED_SINGLE_CODEC),
    "freq_codec": (FreqCodecConfig, build_freq_codec, PUBLISHED_FREQ_CODEC),
    "watermark": (WatermarkConfig, build_watermark, PUBLISHED_WATERMARK),
    "prompted": (PromptedConfig, build_prompted, PUBLISHED_PROMPTED),
    "post_filtered": (PostFilteredConfig, build_post_filtered, PUBLISHED_POST_FILTERED),
    "unicodec": (UniCodecConfig, build_unicodec, PUBLISHED_UNICODEC),
    "socodec_stages": (SoCodecConfig, build_socodec, PUBLISHED_SOCODEC),
    "sqcodec_stacks": (SQCodecConfig, build_sqcodec, PUBLISHED_SQCODEC),
    "facodec_stacks": (FACodecConfig, build_facodec, PUBLISHED_FACODEC),
}
for _kind, (_config, _build, _published) in FAMILIES.items():
    CODECS[_kind], KINDS[_config] = partial(_codec, {}, _build), _kind
    CODECS.update({name: partial(_codec, options, _build) for name, options in _published.items()})
# Mel vocoders are no codecs, but are built, trained and saved as these are.
KINDS[MelVocoderConfig] = "mel_vocoder"
CODECS |= {name: partial(_codec, PUBLISHED_MEL_VOCODER.get(name, {}), build_mel_vocoder) for name in MEL_VOCODERS}



def codec_of(config: Mapping[str, Any]) -> Codec:
    """An untrained codec of `{"kind": …, **options}`. `RecipeError` names what is unknown."""
    return build_part("codec", CODECS, config)


def config_of(codec: Codec) -> dict[str, Any] | None:
    """What `codec_of` builds the same codec from, or None of one that was not built from a configuration."""
    kind = KINDS.get(type(codec.config))
    if kind is None:
        return None
    models = getattr(codec, "entropy", None)
    return {"kind": kind, **codec.config.options(), **({} if models is None else {"entropy": models.options()})}
