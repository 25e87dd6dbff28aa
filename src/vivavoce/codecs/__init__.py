"""Codecs: waveform <-> codes. `build_codec` makes one, untrained, from a recipe's options."""

from vivavoce.codecs.build import CodecConfig, build_codec
from vivavoce.codecs.codec import Codec, Reconstruction

__all__ = ["Codec", "CodecConfig", "Reconstruction", "build_codec"]
