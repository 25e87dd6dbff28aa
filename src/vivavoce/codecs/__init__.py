"""Codecs: waveform <-> codes. `build_codec` makes one, untrained, from a recipe's options."""

from vivavoce.codecs.build import CodecConfig, build_codec
from vivavoce.codecs.checkpoint import load_codec, save_codec
from vivavoce.codecs.chunked import ChunkedCodec
from vivavoce.codecs.codec import Codec, Reconstruction
from vivavoce.codecs.multi_rate import MultiRateCodec
from vivavoce.codecs.published import PUBLISHED, PUBLISHED_DAC, PUBLISHED_SNAC
from vivavoce.codecs.registry import codec_of

__all__ = [
    "PUBLISHED",
    "PUBLISHED_DAC",
    "PUBLISHED_SNAC",
    "ChunkedCodec",
    "Codec",
    "CodecConfig",
    "MultiRateCodec",
    "Reconstruction",
    "build_codec",
    "codec_of",
    "load_codec",
    "save_codec",
]
