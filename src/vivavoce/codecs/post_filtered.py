"""Codecs whose decoder is followed by a post-filter that is trained after them: ScoreDec, FlowDec."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.post_filter import PostFilter, PostFilterConfig
from vivavoce.codecs.seeded_codec import SeededCodec
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import Chain
from vivavoce.quantizers import Quantized
from vivavoce.schema.parts import configured, tuples


@dataclass(frozen=True)
class PostFilteredConfig(CodecOptions):
    """codec: any codec of one channel that is encoder, quantizer and decoder alone; filter: of `PostFilterConfig`."""

    codec: Mapping[str, Any] = field(default_factory=lambda: {"kind": "dac"})
    filter: Mapping[str, Any] = field(default_factory=dict)


class PostFilteredCodec(SeededCodec):
    """Codes of a codec, whose waveform a post-filter makes better at the signal's end; a second of it takes a gigabyte,
    so that pieces are short."""

    config: PostFilteredConfig
    piece, around = 4.0, 1.0

    def __init__(self, config: PostFilteredConfig):
        from vivavoce.codecs.registry import codec_of  # which has this one too

        plain = codec_of(config.codec)
        if type(plain) is not Codec or plain.channels != 1:
            raise RecipeError(f"codec.codec: a {type(plain).__name__} of {plain.channels} channels: one of one channel "
                              "that is encoder, quantizer and decoder alone is needed")  # fmt: skip
        filtering = PostFilter(configured("codec.filter", PostFilterConfig, tuples(config.filter)))
        decoder = Chain(*plain.decoder.parts, filtering)
        super().__init__(plain.encoder, plain.quantizer, decoder, plain.sample_rate, config=config)
        self.codebooks = plain.codebooks

    @property
    def filter(self) -> PostFilter:
        """What follows the decoder."""
        part = self.decoder.parts[-1]
        assert isinstance(part, PostFilter)
        return part

    def decode_unfiltered(self, latents: Tensor) -> Tensor:
        """Latents [B, T, D] -> waveform [B, 1, T x hop], as the decoder alone gives it."""
        return Chain(*list(self.decoder)[:-1])(latents).transpose(1, 2)

    @torch.no_grad()
    def coded(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> what the post-filter hears of it [B, 1, S]; no codebook learns."""
        codes = self.quantizer.encode(self.encode_latents(wave), None, self.codebooks)
        return self.decode_unfiltered(self._dequantize(codes))[..., : wave.shape[-1]]

    def unfiltered(self) -> "Unfiltered":
        """The codec without its post-filter: what is trained first."""
        return Unfiltered(self)


class Unfiltered:
    """A `PostFilteredCodec` without its post-filter, with the face that training has of any codec."""

    def __init__(self, codec: PostFilteredCodec):
        self.codec = codec

    def encode_latents(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> latents [B, T, D]."""
        return self.codec.encode_latents(wave)

    def quantize(self, latents: Tensor) -> Quantized:
        """Latents [B, T, D] through the codebooks in use."""
        return self.codec.quantize(latents)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [B, T, D] -> waveform [B, 1, T x hop]."""
        return self.codec.decode_unfiltered(latents)


def build_post_filtered(options: Mapping[str, Any] | PostFilteredConfig) -> PostFilteredCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return PostFilteredCodec(options if isinstance(options, PostFilteredConfig) else PostFilteredConfig.of(options))


PUBLISHED_POST_FILTERED: dict[str, dict[str, Any]] = {
    # arXiv:2503.01485, FlowDec-75m: DAC's stacks at 75 Hz, 10 x 1024, 7.5 kbit/s; config/flowdec_75m.yaml. The strides
    # are ours, of the published product.
    "flowdec": {
        "codec": {"kind": "dac", "sample_rate": 48000, "encoder_rates": [2, 4, 8, 10], "decoder_rates": [10, 8, 4, 2],
                  "codebooks": 10},
        "filter": {"path": {"kind": "flow"}},
    },
    # arXiv:2401.12160: AudioDec's stacks at 24 kbit/s; config/model/score_model_sgmse.yaml of the same authors'
    # FlowDec. 150 Hz and 16 x 1024 are our reading of the rate.
    "scoredec": {
        "codec": {"kind": "codec", "sample_rate": 48000, "ratios": [5, 4, 4, 4], "dim": 64, "codebooks": 16},
        "filter": {"path": {"kind": "score"}, "exponent": 0.5, "scale": 0.15, "width": 128,
                   "multiples": [1, 1, 2, 2, 2, 2, 2], "blocks": 2, "attention": True, "last_kernel": 3},
    },
}  # fmt: skip
