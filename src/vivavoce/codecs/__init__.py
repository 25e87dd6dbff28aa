"""Codecs: waveform <-> codes. `build_codec` makes one, untrained, from a recipe's options."""

from vivavoce.codecs.build import CodecConfig, build_codec
from vivavoce.codecs.checkpoint import fingerprint, load_codec, save_codec
from vivavoce.codecs.chunked import ChunkedCodec
from vivavoce.codecs.codec import Codec, Reconstruction
from vivavoce.codecs.published import PUBLISHED

__all__ = [
    "PUBLISHED",
    "ChunkedCodec",
    "Codec",
    "CodecConfig",
    "Reconstruction",
    "build_codec",
    "fingerprint",
    "load_codec",
    "save_codec",
]
