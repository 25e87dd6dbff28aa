"""A codec that marks what it says: who listens for it can hear which frames of a recording a model has made.

Source: SSR-Speech (Wang et al., arXiv:2409.07556, section 2.3; audiocraft/models/wmencodec.py and modules/seanet.py of
WangHelin1997/SSR-Speech), over VoiceCraft's EnCodec. Beside the quantized frames, the decoder is told which of them are
new, and of all others what the encoder heard, not quantized: what was not edited stays as it was. A second encoder
hears the result and says which frames are marked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.codecs import seanet
from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.seanet import SEANetConfig
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.elu import ELU
from vivavoce.nn.streaming import Chain, Pointwise, zero_padding

MARK = 16  # the mark of a frame is as wide as its latents over this


@dataclass(frozen=True)
class WatermarkConfig(CodecOptions, SEANetConfig):
    """SEANet's switches, of encoder, decoder and listener. codebooks, codebook_size: of the residual quantizer, with
    further options in `quantizer`. The defaults are VoiceCraft's codec: AudioCraft's at 16 kHz, 4 x 2048."""

    filters: int = 64
    lstm: int = 2
    causal: bool = False
    sample_rate: int = 16000
    codebooks: int = 4
    codebook_size: int = 2048
    quantizer: Mapping[str, Any] = field(default_factory=lambda: {"start_iterations": 50})

    def __post_init__(self):
        super().__post_init__()
        if self.norm != "none" or self.channels != 1 or self.dim < MARK:
            raise RecipeError(f"watermark: the norm is 'none', there is one channel, and dim {self.dim} is from {MARK}")


class WatermarkCodec(Codec):
    """Waveform [B, 1, S] <-> codes, with a mark in the sound of every frame that is new: all, unless told otherwise."""

    config: WatermarkConfig

    def __init__(self, config: WatermarkConfig):
        c = config
        told = 2 * c.dim + c.dim // MARK
        join = Pointwise(nn.Sequential(ELU(), nn.Linear(told, c.dim)), c.dim)
        super().__init__(
            seanet.encoder(c),
            quantizer_of(c.dim, c.codebooks, c.codebook_size, c.quantizer),
            Chain(join, *seanet.decoder(c)),
            c.sample_rate,
            config=c,
        )
        self.mark = nn.Parameter(torch.randn(2, c.dim // MARK))
        self.listener = Chain(*seanet.encoder(c), Pointwise(nn.Sequential(ELU(), nn.Linear(c.dim, 2)), 2))

    def joined(self, latents: Tensor, marks: Tensor | None = None, heard: Tensor | None = None) -> Tensor:
        """What the decoder hears: quantized latents [B, T, D]; of frames without a mark, what was `heard` [B, T, D]
        there; and the marks [B, T] bool themselves (None: everywhere)."""
        if marks is None:
            marks = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        if heard is None:
            heard = torch.zeros_like(latents)
        kept = torch.where(marks[..., None], torch.zeros_like(heard), heard)
        mark = self.mark / self.mark.norm(dim=1, keepdim=True).clamp(min=1)
        return torch.cat([latents, kept, mark[marks.long()].to(latents.dtype)], dim=-1)

    def decode_latents(self, latents, lengths=None, state=None):
        """As any codec's, of latents, which are marked everywhere, or of what `joined` gives."""
        if latents.shape[-1] == self.quantizer.width:
            latents = self.joined(latents)
        return super().decode_latents(latents, lengths, state)

    def _latents_of(self, codes, state):
        return self.joined(self._dequantize(codes))

    @torch.no_grad()
    def edit(self, codes: Tensor, marks: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, K, T] of an edited recording, marks [B, T] bool of the frames that are new, and the recording
        [B, 1, S] with anything at their places -> waveform [B, 1, T x hop], with `lengths` [B] in samples cut to them.

        Raises `RequestError` for marks or a recording of another number of frames.
        """
        codes = self._checked(codes)
        latents = self._dequantize(codes)
        if marks.shape != latents.shape[:2] or marks.dtype != torch.bool:
            raise RequestError(f"marks {tuple(marks.shape)} of {marks.dtype}: bool {list(latents.shape[:2])} expected")
        heard = self.encode_latents(original, lengths)
        if heard.shape[:2] != latents.shape[:2]:
            raise RequestError(
                f"a recording of {heard.shape[1]} frames in {len(heard)} rows beside codes of {latents.shape[1]} in "
                f"{len(latents)}: what was taken out is filled with anything"
            )
        counts = None if lengths is None else self.frames(lengths)
        wave = self.decode_latents(self.joined(latents, marks.to(latents.device), heard), counts).float()
        return wave if lengths is None else zero_padding(wave.transpose(1, 2), lengths).transpose(1, 2)

    def listen(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, S] -> logits [B, frames(S), 2] of frames without and with a mark, with gradients."""
        return self.listener(self._channels_last(wave), lengths)

    @torch.no_grad()
    def marked(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, S] -> how likely each frame is marked [B, frames(S)], 0 to 1; 0 beyond each row's frames."""
        shares = self.listen(wave, lengths).float().softmax(-1)[..., 1]
        return zero_padding(shares, None if lengths is None else self.frames(lengths))


def build_watermark(options: Mapping[str, Any] | WatermarkConfig) -> WatermarkCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return WatermarkCodec(options if isinstance(options, WatermarkConfig) else WatermarkConfig.of(options))


PUBLISHED_WATERMARK: dict[str, dict[str, Any]] = {
    # WangHelin1997/SSR-Speech over VoiceCraft's encodec_4cb2048_giga: 50 Hz, 2.2 kbit/s.
    "ssr-speech-codec": {},
}
