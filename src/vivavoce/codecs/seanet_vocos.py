"""SEANet's encoder and a Vocos as decoder: WavTokenizer, Language-Codec, and the audio codec of SimVQ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vivavoce.codecs import seanet
from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.seanet import SEANetConfig
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import PadMode
from vivavoce.nn.streaming import Chain
from vivavoce.schema.parts import configured
from vivavoce.vocoders.vocos import Vocos, VocosConfig


@dataclass(frozen=True)
class SEANetVocosConfig(CodecOptions, SEANetConfig):
    """SEANet's switches for the encoder, EnCodec's without causality unless told otherwise; what is said of a decoder
    has no meaning here. vocoder: options of `VocosConfig` beside its inputs, hop and rate. quantizer: residual,
    unless it names another `kind`."""

    dim: int = 512
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    true_skip: bool = False
    lstm: int = 2
    causal: bool = False
    pad_mode: PadMode = "reflect"
    sample_rate: int = 24000
    codebooks: int = 1
    codebook_size: int = 4096
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    vocoder: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.norm != "none" or self.channels != 1:
            raise RecipeError("seanet_vocos: the norm is 'none' and there is one channel")


class SEANetVocos(Codec):
    """Its decoder may be told a `condition` (WavTokenizer's `bandwidth_id`, which it needs even with one bitrate)."""

    @property
    def condition(self) -> int:
        """The setting that the decoder is told, from 0."""
        return self.vocos.condition

    @condition.setter
    def condition(self, which: int) -> None:
        self.vocos.condition = which

    @property
    def vocos(self) -> Vocos:
        """The decoder, by its type."""
        assert isinstance(self.decoder, Vocos)
        return self.decoder


def build_seanet_vocos(options: Mapping[str, Any] | SEANetVocosConfig) -> SEANetVocos:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, SEANetVocosConfig) else SEANetVocosConfig.of(options)
    quantizer = quantizer_of(config.dim, config.codebooks, config.codebook_size, config.quantizer)
    sizes = {"inputs": config.dim, "hop": config.hop, "sample_rate": config.sample_rate, "padding": "same"}
    decoder = Vocos(configured("vocoder", VocosConfig, {"fft_size": 4 * config.hop, **sizes, **config.vocoder}))
    encoder: Chain = seanet.encoder(config)
    return SEANetVocos(encoder, quantizer, decoder, config.sample_rate, config=config)


_WAVTOKENIZER: dict[str, Any] = {
    "quantizer": {"start_iterations": 200},
    "vocoder": {"width": 768, "hidden": 2304, "layers": 12, "conditions": 4, "prenet": True},
}

PUBLISHED_SEANET_VOCOS: dict[str, dict[str, Any]] = {
    # arXiv:2408.16532; jishengpeng/WavTokenizer, wavtokenizer_smalldata_frame40_… and frame75_….yaml: 0.48 and 0.9
    # kbit/s.
    "wavtokenizer-40": {**_WAVTOKENIZER, "ratios": [6, 5, 5, 4]},
    "wavtokenizer-75": {**_WAVTOKENIZER, "ratios": [8, 5, 4, 2]},
    # arXiv:2402.12208; jishengpeng/Languagecodec: the first three codebooks divide the channels; four give 3 kbit/s.
    "language-codec": {
        "dim": 128,
        "codebooks": 8,
        "codebook_size": 1024,
        "quantizer": {"kind": "masked_channel_rvq", "masked": 3, "start_iterations": 50},
        "vocoder": {"width": 384, "hidden": 1152, "layers": 8, "fft_size": 1280, "conditions": 4, "prenet": True},
    },
    # arXiv:2411.02038; youngsheen/SimVQ, configs/libritts_24khz.yaml: a causal encoder, one codebook without collapse.
    "simvq": {
        "causal": True,
        "codebook_size": 1024,
        "quantizer": {"kind": "sim_vq"},
        "vocoder": {"width": 768, "hidden": 2304, "layers": 12, "prenet": True},
    },
}
