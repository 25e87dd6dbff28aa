"""A stand-in for torchaudio, for tests only: the few functions that other people's codecs import at load time.

torchaudio has no build for our torch. Peers (encodec, vocos, descript-audio-codec) use it for spectrograms inside
discriminators and losses and for resampling; those are given here from their published definitions.
"""

from . import functional, transforms

__version__ = "0.0+vivavoce.shim"
__all__ = ["functional", "transforms"]
