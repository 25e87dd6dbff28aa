"""Codecs that send what does not change, above all who speaks, once: frames of codes, and a few codes for the whole.

What comes once is made of the whole signal, and stands beside the codes of the frames: `encode_voice` gives it,
`decode` and the steps of decoding take it. Another speaker's gives the same words in that voice; without any it is
nobody's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.codec import Codec
from vivavoce.errors import RequestError
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.streaming import State, lengths_of, zero_padding
from vivavoce.quantizers import Quantized, Quantizer


class WithVoice(WholeSignal):
    """Base of encoders: a subclass gives `both`, and this puts the voice beside every frame, [B, T, D + V]."""

    inputs = 1

    def both(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms x [B, S, 1], zero beyond lengths [B] -> latents [B, T, D], voice [B, V]."""
        raise NotImplementedError

    def respond(self, x, lengths):
        latents, voice = self.both(x, lengths)
        return torch.cat([latents, voice[:, None].expand(-1, latents.shape[1], -1)], dim=-1)


class VoiceQuantizer(Quantizer):
    """Latents [B, T, D + V], of which the last V are the same in all frames of a row -> codes [B, K, T] of the first D.

    frames quantizes those; voice quantizes the others once, as `tokens` frames side by side.
    """

    def __init__(self, frames: Quantizer, voice: Quantizer, tokens: int = 1):
        super().__init__()
        self.frames, self.voice, self.tokens = frames, voice, tokens
        self.extra = tokens * voice.width
        self.width, self.codebook_sizes = frames.width + self.extra, frames.codebook_sizes

    @property
    def voice_sizes(self) -> list[int]:
        """How many values each of the voice's codes can have."""
        return [size for size in self.voice.codebook_sizes for _ in range(self.tokens)]

    def _split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, T, D], and the voice [B, tokens, V / tokens] (zeros where there is no frame)."""
        voice = latents[:, :1, self.frames.width :].sum(1)
        return latents[..., : self.frames.width], voice.unflatten(1, (self.tokens, -1))

    def joined(self, frames: Tensor, voice: Tensor) -> Tensor:
        """Quantized frames [B, T, D] and voice [B, V] as the decoder hears them."""
        return torch.cat([frames, voice[:, None].expand(-1, frames.shape[1], -1).to(frames.dtype)], dim=-1)

    def forward(self, latents, lengths=None, codebooks=None):
        """`loss` is the sum of both."""
        self.check_latents(latents)
        frames, voice = self._split(zero_padding(latents, lengths))
        found, spoken = self.frames(frames, lengths, codebooks), self.voice(voice)
        with torch.autocast(latents.device.type, enabled=False):  # it cannot join float16
            y = zero_padding(self.joined(found.latents, spoken.latents.flatten(1)), lengths)
        return Quantized(y, found.codes, found.loss + spoken.loss, found.usage, found.perplexity)

    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        return self.frames.encode(latents[..., : self.frames.width], lengths, codebooks)

    def encode_voice(self, latents: Tensor) -> Tensor:
        """Latents [B, T, D + V] -> the voice's codes [B, N] int64."""
        return self.voice.encode(self._split(latents)[1]).flatten(1)

    def decode_voice(self, codes: Tensor) -> Tensor:
        """The voice's codes [B, N] -> [B, V] float32."""
        return self.voice.decode(codes.unflatten(1, (self.voice.codebooks, self.tokens))).flatten(1)

    def decode(self, codes):
        """In nobody's voice: zeros."""
        frames = self.frames.decode(codes)
        return self.joined(frames, frames.new_zeros(len(frames), self.extra))

    def ties(self, latents, codes=None):
        return self.frames.ties(latents[..., : self.frames.width], codes)


class VoiceCodec(Codec):
    """A codec around a `VoiceQuantizer`. Its decoder's state holds the voice, row by row."""

    quantizer: VoiceQuantizer

    @property
    def voice_sizes(self) -> list[int]:
        """How many values each of the voice's codes can have."""
        return self.quantizer.voice_sizes

    @torch.no_grad()
    def encode_voice(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Whole waveforms [B, C, S] -> the codes [B, N] int64 that come once."""
        return self.quantizer.encode_voice(self.encode_latents(wave, lengths))

    def beside(self, wave: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """What is transmitted beside the codes, as `decode` takes it."""
        return {"voice": self.encode_voice(wave, lengths)}

    def decoder_state(self, batch: int, voice: Tensor | None = None) -> State:
        """State of `batch` signals of which nothing has been decoded yet, in the `voice` of codes [batch, N]."""
        state = super().decoder_state(batch)
        device, dtype = self._home(self.decoder)
        if voice is None:
            vector = torch.zeros(batch, self.quantizer.extra, device=device, dtype=dtype)
        else:
            if voice.shape != (batch, len(self.voice_sizes)):
                raise RequestError(
                    f"voice {tuple(voice.shape)}: [{batch}, {len(self.voice_sizes)}] expected, codes of `encode_voice`"
                )
            vector = self.quantizer.decode_voice(voice.to(device)).to(dtype)
        return State({**state, "voice": vector})

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None, voice: Tensor | None = None) -> Tensor:
        """As any codec's, in the `voice` of codes [B, N]."""
        codes = self._checked(codes)
        return self._decoded(codes, lengths, self.decoder_state(len(codes), voice))

    def _latents_of(self, codes, state):
        device, dtype = self._home(self.decoder)
        frames = self.quantizer.frames.decode(codes.to(device)).to(dtype)
        voice = frames.new_zeros(len(frames), self.quantizer.extra) if state is None else state["voice"]
        return self.quantizer.joined(frames, voice)

    def invariance(self, wave: Tensor) -> Tensor:
        """How much the voice of one half of waveforms [B, C, S] differs from that of the other, which is not moved:
        1 - cosine, the mean over rows (TiCodec's time-invariant loss)."""
        half = wave.shape[-1] // 2
        encoder: Any = self.encoder.parts[0]
        one, other = (
            encoder.both(x, lengths_of(x, None))[1]
            for x in (wave[..., :half].transpose(1, 2), wave[..., half : 2 * half].transpose(1, 2))
        )
        return (1 - F.cosine_similarity(one, other.detach(), dim=-1)).mean()


class Unquantized(Quantizer):
    """What comes once as it is: vectors [B, 1, width] without codes."""

    codebook_sizes = ()

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, latents, lengths=None, codebooks=None):
        none = latents.new_zeros(0)
        codes = torch.zeros(len(latents), 0, latents.shape[1], dtype=torch.int64, device=latents.device)
        return Quantized(latents, codes, latents.new_zeros(()), none, none)


class VoiceVectorCodec(VoiceCodec):
    """A codec whose voice is a vector and has no codes: its quantizer's `voice` is `Unquantized`."""

    @torch.no_grad()
    def speaker_of(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, S], lengths [B] in samples -> the vector of each voice [B, V]."""
        return self.encode_latents(wave, lengths)[:, :1, self.quantizer.frames.width :].sum(1)

    def beside(self, wave: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        return {"voice": self.speaker_of(wave, lengths)}

    def encode_voice(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """A voice has no codes here: `speaker_of` gives its vector."""
        raise RequestError("this codec's voice is a vector, not codes: `speaker_of` gives it, and `decode` takes it")

    def decoder_state(self, batch: int, voice: Tensor | None = None) -> State:
        """State of `batch` signals of which nothing has been decoded yet, in the voice of vectors [batch, V]."""
        width = self.quantizer.extra
        if voice is not None and voice.shape != (batch, width):
            raise RequestError(f"voice {tuple(voice.shape)}: [{batch}, {width}] expected, vectors of `speaker_of`")
        device, dtype = self._home(self.decoder)
        vector = torch.zeros(batch, width) if voice is None else voice
        return State({**Codec.decoder_state(self, batch), "voice": vector.to(device, dtype)})


class AddVoice(nn.Module):
    """Frames [B, T, D + V] -> [B, T, D]: the first D, and a linear map of what comes once, added to each."""

    def __init__(self, width: int, extra: int):
        super().__init__()
        self.width, self.voice = width, nn.Linear(extra, width)

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.width] + self.voice(x[..., self.width :])
