"""Opus, the codec of calls, as something to compare with: libopus through PyAV, at the rate that its packets have."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.errors import RequestError, need

RATE, CLOCK = 16000, 48000  # of what it hears (wideband), and of its decoder
FRAME = 320  # 20 ms


class OpusCodec:
    """`resynth(audio)` at about `kilobits` a second: speech mode, 20 ms frames, constrained variable rate, complexity
    10. `bits_per_second` of a result is measured, containers not counted."""

    verbs = ("resynth",)
    delay = 0.0265  # seconds: a frame and the encoder's look-ahead
    codebook_sizes = ()

    def __init__(self, kilobits: float):
        need("av", "serve", "Opus")
        if not 5 <= kilobits <= 256:
            raise RequestError(f"opus:{kilobits:g}: its encoder takes 6 to 256 kbit/s of speech (5 at least)")
        self.kilobits, self.fingerprint = kilobits, f"opus-{kilobits:g}"

    def resynth(self, audio: Audio) -> Any:
        """Through the encoder and the decoder: as many samples as were given, at 16 kHz, mono."""
        av: Any = need("av", "serve", "Opus")
        samples = audio.mono().resample(RATE).samples[0]
        encoder = av.CodecContext.create("libopus", "w")
        encoder.sample_rate, encoder.layout, encoder.format = RATE, "mono", "s16"
        encoder.bit_rate = round(self.kilobits * 1000)
        options = {"application": "voip", "frame_duration": "20", "vbr": "constrained", "compression_level": "10"}
        encoder.options = options
        encoder.open()
        whole = math.ceil((len(samples) + RATE // 50) / FRAME) * FRAME  # and what its delay keeps back
        padded = (np.clip(np.pad(samples, (0, whole - len(samples))), -1, 1) * 32767).astype(np.int16)
        packets = []
        for start in range(0, whole, FRAME):
            frame = av.AudioFrame.from_ndarray(padded[None, start : start + FRAME], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            packets += [bytes(packet) for packet in encoder.encode(frame)]
        packets += [bytes(packet) for packet in encoder.encode(None)]
        wave = self._decoded(av, packets, bytes(encoder.extradata))
        found = Audio(wave[None], CLOCK).resample(RATE).samples[:, : len(samples)]
        found = np.pad(found.clip(-1, 1), ((0, 0), (0, len(samples) - found.shape[1])))
        bits = 8 * sum(map(len, packets)) * RATE / whole
        return SimpleNamespace(
            audio=Audio(found, RATE), codes=None, bits_per_second=bits, tokens_per_second=math.nan
        )

    @staticmethod
    def _decoded(av: Any, packets: list[bytes], header: bytes) -> np.ndarray:
        decoder = av.CodecContext.create("libopus", "r")
        decoder.sample_rate, decoder.layout = CLOCK, "mono"
        skip = int.from_bytes(header[10:12], "little")  # of the header OpusHead: samples that come before the sound
        pieces = []
        for packet in packets:
            for frame in decoder.decode(av.Packet(packet)):
                array = frame.to_ndarray()
                pieces.append(array.reshape(-1).astype(np.float32) / (32768 if array.dtype == np.int16 else 1))
        return np.concatenate(pieces)[skip:] if pieces else np.zeros(0, np.float32)
