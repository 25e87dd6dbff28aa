"""Sound as it travels: 16-bit PCM, mu-law and A-law (ITU-T G.711), at any rate, as streams with resampling state.

Between two rates a stream begins with a silence of 1.5 to 3 ms (`vivavoce.audio.live_resampler`); from then on each
piece gives out as much as came in.
"""

import numpy as np

from vivavoce.audio.live_resampler import LiveResampler
from vivavoce.errors import AudioError

KINDS = ("audio/pcm", "audio/pcmu", "audio/pcma")


class SoundIn:
    """Bytes of one stream -> samples [n] float32 at the model's rate; pieces may end anywhere but inside a sample."""

    def __init__(self, kind: str, rate: int, model_rate: int):
        self.kind, self.rate = check_kind(kind), rate
        self._resampler = LiveResampler(rate, model_rate)

    def decode(self, data: bytes) -> np.ndarray:
        """The next piece. Raises `AudioError` for half a sample."""
        return self._resampler.step(samples_of(data, self.kind)[None])[0]

    def flush(self) -> np.ndarray:
        """What the resampler still holds; the stream may go on afterwards with a new beginning."""
        return self._resampler.flush()[0]


class SoundOut:
    """Samples [n] float32 at the model's rate -> bytes of one stream."""

    def __init__(self, kind: str, rate: int, model_rate: int):
        self.kind, self.rate = check_kind(kind), rate
        self._resampler = LiveResampler(model_rate, rate)

    def encode(self, samples: np.ndarray) -> bytes:
        """The next piece, as far as the resampler gives it out."""
        return bytes_of(self._resampler.step(samples[None])[0], self.kind)

    def flush(self) -> bytes:
        """The rest; the stream may go on afterwards with a new beginning."""
        return bytes_of(self._resampler.flush()[0], self.kind)


def check_kind(kind: str) -> str:
    """One of `KINDS`, or an `AudioError`."""
    if kind not in KINDS:
        raise AudioError(f"sound format '{kind}': there are {', '.join(KINDS)}")
    return kind


def samples_of(data: bytes, kind: str = "audio/pcm") -> np.ndarray:
    """Bytes -> samples [n] float32 in [-1, 1)."""
    if kind == "audio/pcm":
        if len(data) % 2:
            raise AudioError(f"{len(data)} bytes are no whole number of 16-bit samples")
        return np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768
    return _LEVELS[kind][np.frombuffer(data, dtype=np.uint8)].astype(np.float32) / 32768


def bytes_of(samples: np.ndarray, kind: str = "audio/pcm") -> bytes:
    """Samples [n] float32 -> bytes; what is beyond full scale is clipped."""
    linear = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")
    if kind == "audio/pcm":
        return linear.tobytes()
    return _CODES[kind][linear.astype(np.int64) + 32768].tobytes()


def _ulaw_table() -> np.ndarray:
    code = ~np.arange(256) & 0xFF
    exponent, mantissa = (code >> 4) & 7, code & 15
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude)


def _alaw_table() -> np.ndarray:
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 15
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude)


def _nearest(levels: np.ndarray) -> np.ndarray:
    """The code of the nearest level for each 16-bit sample, [65536] from -32768 on."""
    order = np.argsort(levels, kind="stable")
    middles = (levels[order][1:] + levels[order][:-1]) / 2
    return order[np.searchsorted(middles, np.arange(-32768, 32768))].astype(np.uint8)


_LEVELS = {"audio/pcmu": _ulaw_table(), "audio/pcma": _alaw_table()}
_CODES = {kind: _nearest(levels) for kind, levels in _LEVELS.items()}
