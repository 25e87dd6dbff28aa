"""dMel: log-mel values in 16 steps are the tokens (Bai et al., arXiv:2407.15835). Only a vocoder is learned."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vivavoce.audio.mel import mel_filters
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.streaming import Chain
from vivavoce.quantizers import build_quantizer
from vivavoce.vocoders.vocos import Vocos, VocosConfig

QUIET = 1e-5  # magnitudes below it count as it, in every bin


class MelFrames(Conv):
    """Waveform [B, S, 1] -> log10 of mel magnitudes [B, S // hop + 1, mels]; half a spectrum's samples are reflected at
    both ends (the dmel package: torch.stft with `center`, Hann windows in its middle, Slaney's filters). edge: in their
    place so many zeros at both ends; of (fft_size - hop) / 2 there are S // hop frames."""

    taper: Tensor
    filters: Tensor

    def __init__(
        self, sample_rate: int, mels: int, window: int, hop: int, fft_size: int, fmin: float, fmax: float, floor: float,
        edge: int | None = None,
    ):  # fmt: skip
        pad: dict[str, Any] = {"pad_mode": "reflect"} if edge is None else {}
        edge = fft_size // 2 if edge is None else edge
        super().__init__(1, mels, fft_size, hop, bias=False, left=edge, right=edge, complete=False, **pad)
        self.register_parameter("weight", None)  # only the convolution's bookkeeping is used
        self.fft_size, self.floor = fft_size, floor
        before = (fft_size - window) // 2
        taper = torch.nn.functional.pad(torch.hann_window(window), (before, fft_size - window - before))
        filters = mel_filters(sample_rate, fft_size, mels, fmin, fmax, scale="slaney", area=True)
        self.register_buffer("taper", taper, persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).T.contiguous(), persistent=False)

    def convolve(self, x: Tensor) -> Tensor:
        """Of all windows of x [B, T, 1]."""
        windows = x[..., 0].float().unfold(1, self.fft_size, self.stride) * self.taper.float()
        spectrum = torch.fft.rfft(windows)
        power = spectrum.real.square() + spectrum.imag.square()
        magnitude = power.clamp(min=QUIET**2).sqrt()
        return (magnitude @ self.filters.float()).clamp(min=self.floor).log10().to(x.dtype)


@dataclass(frozen=True)
class MelCodecConfig(CodecOptions):
    """The defaults are dMel's: 50 ms windows every 25 ms, 80 bands from 80 to 7600 Hz, `levels` steps from `low` to
    `high` in log10. vocoder: a Vocos's width, hidden, layers, fft_size, or `source`: the run of a mel vocoder."""

    sample_rate: int = 16000
    mels: int = 80
    window: int = 800
    hop: int = 400
    fft_size: int = 1024
    fmin: float = 80.0
    fmax: float = 7600.0
    floor: float = 1e-10
    levels: int = 16
    low: float = -7.0
    high: float = 2.0
    vocoder: Mapping[str, Any] = field(default_factory=dict)


def build_mel_codec(options: Mapping[str, Any] | MelCodecConfig) -> Codec:
    """A codec whose vocoder is untrained, by torch's global generator. Raises `RecipeError`."""
    c = options if isinstance(options, MelCodecConfig) else MelCodecConfig.of(options)
    ears = MelFrames(c.sample_rate, c.mels, c.window, c.hop, c.fft_size, c.fmin, c.fmax, c.floor)
    grid = {"kind": "scalar", "width": c.mels, "levels": c.levels, "low": c.low, "high": c.high, "squash": False}
    if "source" in c.vocoder:
        from vivavoce.codecs.mel_vocoder import MelForm, vocoder_of

        window = (c.mels, c.fft_size, c.window, c.hop, c.fmin, c.fmax, c.floor)
        made, found = vocoder_of(c.vocoder, MelForm("decades", *window), c.sample_rate)
        if found.pop("kind") != "vocos":
            raise RecipeError("vocoder.source: this codec speaks through a Vocos")
        codec = build_mel_codec(dataclasses.replace(c, vocoder=found))
        codec.decoder.parts[0].load_state_dict(made.state_dict())
        return codec
    sizes = {"inputs": c.mels, "hop": c.hop, "padding": "same", "sample_rate": c.sample_rate}
    vocoder = Vocos(VocosConfig(**{**sizes, **c.vocoder}))  # type: ignore[arg-type]
    return Codec(Chain(ears), build_quantizer(grid), Chain(vocoder), c.sample_rate, config=c)


PUBLISHED_MEL: dict[str, dict[str, Any]] = {"dmel": {}}
