"""`CodecModel`: a system that is a codec and nothing more, with the verb `resynth`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vivavoce.audio import Audio, check_waveform, resample
from vivavoce.errors import RequestError
from vivavoce.systems.model import MissingVerb, Model
from vivavoce.tokenizers.text_aligned import TextAlignedCodec


@dataclass(frozen=True)
class Resynthesis:
    """Audio through the tokens and back, of as many samples as were given; codes [codebooks, frames], as the codec's
    `encode` gives them."""

    audio: Audio
    codes: np.ndarray
    bits_per_second: float
    tokens_per_second: float


@dataclass(frozen=True)
class Frames:
    """Frames [T, D] float32 at `frame_rate` Hz."""

    values: np.ndarray
    frame_rate: float


def mono_samples(audio: Any, sample_rate: int, where: str) -> np.ndarray:
    """`Audio` as samples [n] float32 at `sample_rate`, channels averaged; refuses what is no waveform."""
    return channel_samples(audio, sample_rate, 1, where)[0]


def channel_samples(audio: Any, sample_rate: int, channels: int, where: str) -> np.ndarray:
    """As `mono_samples`, [channels, n]: as they are if there are as many, else their mean in each."""
    if isinstance(audio, str) or not hasattr(audio, "sample_rate"):
        raise RequestError("audio is given as vivavoce.Audio: use vivavoce.read(path)")
    check_waveform(audio, where=where)
    samples = audio.samples
    if len(samples) != channels:
        samples = samples.mean(0, keepdims=True).repeat(channels, 0)
    if audio.sample_rate != sample_rate:
        samples = resample(samples, audio.sample_rate, sample_rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


def resynthesize(codec: Any, samples: np.ndarray) -> Resynthesis:
    """Samples [n] or [channels, n] at the codec's rate through its codes."""
    home, size = next(codec.parameters()), samples.shape[-1]
    with torch.inference_mode():
        heard = torch.from_numpy(np.atleast_2d(samples))[None].to(home.device)
        if hasattr(codec, "encode_scaled"):
            codes, scales = codec.encode_scaled(heard)
            wave = codec.decode(codes, torch.tensor([size]), scales)
        else:
            codes = codec.encode(heard)
            wave = codec.decode(codes, **(codec.beside(heard) if hasattr(codec, "beside") else {}))  # a timbre, say
        wave = wave[0, :, :size].float().cpu().numpy()
    # encoders of units need more samples than a frame's hop: what the last ones gave no unit for is silent
    wave = np.pad(wave, ((0, 0), (0, size - wave.shape[1])))
    tokens = getattr(codec, "tokens_per_second", codec.frame_rate * codec.codebooks)
    return Resynthesis(Audio(wave, codec.sample_rate), codes[0].cpu().numpy(), float(codec.bits_per_second), tokens)


def resynthesize_text(codec: Any, samples: np.ndarray, text: str | None) -> Resynthesis:
    """As `resynthesize`, through codes that are aligned to what is said."""
    home = next(codec.parameters())
    with torch.inference_mode():
        heard = torch.from_numpy(samples)[None, None].to(home.device)
        said, codes = codec.encode(heard, text if text is None else [text])
        length = torch.tensor([len(samples)], device=home.device)
        wave = codec.decode(codes, said, length, **codec.beside(heard))[0].float().cpu().numpy()
    seconds = len(samples) / codec.sample_rate
    bits = codec.bits_per_token * codes.shape[2]
    found = Audio(wave, codec.sample_rate), codes[0].cpu().numpy()
    return Resynthesis(*found, bits / seconds, codes.shape[1] * codes.shape[2] / seconds)


class CodecSystem(nn.Module):
    """What a codec's checkpoint holds: `codec`."""

    def __init__(self, codec: nn.Module):
        super().__init__()
        self.codec = codec


class CodecModel(Model):
    """A recipe without stages: its one codec."""

    system: CodecSystem

    @property
    def verbs(self) -> dict[str, str]:
        """Verb -> native or derived; units have frames, and a way back where they have a vocoder."""
        units = {"features": "native"} if self._hears else {}
        voice = getattr(self.system.codec, "vocoder", self) is not None
        return {**units, **({"resynth": "native"} if voice else {})}

    @property
    def _hears(self) -> bool:
        return hasattr(self.system.codec, "units")

    def features(self, audio: Any, layer: Any = None) -> Any:
        """Frames of the encoder that the units are made of: `.values` [T, D] (layer "all": [layers + 1, T, D]) and
        `.frame_rate` in Hz; layer: None for the one of the units. A list gives a list."""
        if not self._hears:
            raise MissingVerb(f"{self.name} has no verb 'features'; it has {', '.join(self.verbs)}")
        if isinstance(audio, list):
            return [self.features(one, layer) for one in audio]
        units: Any = self.system.codec.units
        samples = torch.from_numpy(mono_samples(audio, self.sample_rate, "the audio to hear"))
        with torch.inference_mode():
            found = units.encoder.features(samples[None, None], None, units.layer if layer is None else layer)
        return Frames(found.values[0].float().cpu().numpy(), found.frame_rate)

    def resynth(self, audio: Any, text: Any = None) -> Any:
        """Through the tokens and back: as many samples as were given; a list gives a list.

        text: what is said, one for each audio, where tokens are aligned to it."""
        if isinstance(audio, list):
            texts = [None] * len(audio) if text is None else text
            return [self.resynth(one, said) for one, said in zip(audio, texts, strict=True)]
        codec, where = self.system.codec, "the audio to send through"
        channels = int(getattr(codec, "channels", 1))  # type: ignore[arg-type]
        if channels > 1 and text is None:
            return resynthesize(codec, channel_samples(audio, self.sample_rate, channels, where))
        samples = mono_samples(audio, self.sample_rate, where)
        if isinstance(codec, TextAlignedCodec):
            return resynthesize_text(codec, samples, text)
        if text is not None:
            raise RequestError(f"resynth: {self.name}'s tokens are made of audio alone: leave text out")
        return resynthesize(codec, samples)
