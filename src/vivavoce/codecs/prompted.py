"""PromptCodec: a prompt stands beside the codes, so that these need not tell whose voice and what room it is.

Source: Pan et al., arXiv:2404.02702 (PromptCodec, later PSCodec). A vector of the speaker and the mel frames of the
prompt, in an encoder of their own, join the quantized frames with learned weights before the decoder; every frame finds
what it needs of the mel frames by cross-attention, wherever it stands. Codes are of groups of channels (HiFi-Codec).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs import seanet
from vivavoce.codecs.bicodec import Speaker
from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.seanet import SEANetConfig
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.attention import CrossAttention
from vivavoce.nn.convnext_stack import convnext_stack
from vivavoce.nn.convolution import PadMode
from vivavoce.nn.streaming import Chain, State, Streaming, check_lengths, lengths_of, valid
from vivavoce.quantizers import Quantized
from vivavoce.vocoders.mel import vocoder_mel

MEL_RATE = 100  # frames of a prompt a second
BEHIND = 2  # frames of zeros behind a prompt: a window of four reaches no farther


@dataclass(frozen=True)
class PromptedConfig(CodecOptions, SEANetConfig):
    """SEANet's switches, without causality unless told otherwise. codebooks, codebook_size: of the groups' residual
    quantizers, with further options in `quantizer`. mels: bands of a prompt; prompt_width, prompt_hidden,
    prompt_layers: of the ConvNeXt blocks that hear them; heads: of cross-attention; speaker: width of the convolutions
    that hear the voice."""

    dim: int = 512
    causal: bool = False
    pad_mode: PadMode = "reflect"
    sample_rate: int = 24000
    codebooks: int = 4
    codebook_size: int = 1024
    quantizer: Mapping[str, Any] = field(default_factory=lambda: {"kind": "grouped_rvq", "groups": 2})
    mels: int = 80
    prompt_width: int = 256
    prompt_hidden: int = 768
    prompt_layers: int = 4
    heads: int = 8
    speaker: int = 512

    def __post_init__(self):
        super().__post_init__()
        if self.norm != "none" or self.channels != 1:
            raise RecipeError("promptcodec: the norm is 'none' and there is one channel")
        if self.dim % self.heads or self.sample_rate % (2 * MEL_RATE):
            raise RecipeError(
                f"promptcodec: heads {self.heads} divide dim {self.dim}, and a mel frame of 10 ms is an even number of "
                f"samples, not {self.sample_rate / MEL_RATE:g}"
            )


class Prompts(nn.Module):
    """Mel frames [B, P, mels] of prompts -> a voice [B, dim] and frames [B, P, dim]."""

    def __init__(self, config: PromptedConfig):
        super().__init__()
        c = config
        self.voice = Speaker(c.mels, c.speaker, 1, c.dim)
        self.frames = Chain(*convnext_stack(c.mels, c.prompt_width, c.prompt_hidden, c.prompt_layers, c.dim))

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """lengths [B] in frames; beyond them nothing is heard, and of a row without any the voice is zeros."""
        return self.voice(mel, lengths) * (lengths > 0)[:, None], self.frames(mel, lengths)


class Prompted(Streaming):
    """Frames [B, T, D] -> a x + b voice + c attention(x, the prompt's frames), with weights that are learned from 1.

    The state holds the voice and the prompt's keys and values, row by row; rows without a prompt get a x alone.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self._width = width
        self.norm, self.cross = nn.LayerNorm(width), CrossAttention(width, heads)
        self.weights = nn.Parameter(torch.ones(3))

    @property
    def width(self):
        return self._width

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        state = State(prompted=zero, emitted=zero, voice=torch.zeros(batch, self.width, **home))
        for name in ("keys", "values"):
            state[name] = torch.zeros(batch, 0, self.cross.kv_heads, self.cross.head_dim, **home)
        return state

    def told(self, state: State, voice: Tensor, frames: Tensor, prompted: Tensor) -> State:
        """The state with a voice [B, D] and the frames [B, P, D] of prompts, of which `prompted` [B] are valid."""
        keys, values = self.cross.remember(frames)
        return State({**state, "voice": voice, "keys": keys, "values": values, "prompted": prompted})

    def step(self, x, state, lengths=None):
        own, voice, found = self.weights
        told = own * x + voice * state["voice"][:, None]
        if state["keys"].shape[1]:
            told = told + found * self.cross(self.norm(x), (state["keys"], state["values"]), state["prompted"])
        return told, State({**state, "emitted": lengths_of(x, lengths)})


class PromptedCodec(Codec):
    """A codec that needs a prompt beside its codes to decode: any recording of the speaker, best in the same room.

    Without one, the sound is in nobody's voice. Codes and waveform stream; the prompt is heard before.
    """

    config: PromptedConfig

    def __init__(self, config: PromptedConfig):
        c = config
        super().__init__(
            seanet.encoder(c),
            quantizer_of(c.dim, c.codebooks, c.codebook_size, c.quantizer),
            Chain(Prompted(c.dim, c.heads), *seanet.decoder(c)),
            c.sample_rate,
            config=c,
        )
        self.prompts = Prompts(c)

    def mel(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> mel frames [B, ceil(100 S / sample_rate), mels]; zeros are heard behind the signal."""
        hop = self.sample_rate // MEL_RATE
        whole = F.pad(wave[:, 0], (0, -wave.shape[-1] % hop + BEHIND * hop))
        mel = vocoder_mel(whole, self.sample_rate, 4 * hop, hop, self.config.mels, self.sample_rate / 2)
        return mel[:, :-BEHIND].to(self._home(self.decoder)[1])

    def heard(self, prompt: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts [B, 1, S], `lengths` [B] in samples -> voice [B, D], frames [B, P, D], how many are valid [B]."""
        if prompt.dim() != 3 or prompt.shape[1] != 1:
            raise RequestError(f"prompt {tuple(prompt.shape)}: waveforms [batch, 1, samples] at {self.sample_rate} Hz")
        if lengths is not None:
            check_lengths(lengths, len(prompt), prompt.shape[-1])
            prompt = prompt * valid(lengths.to(prompt.device), prompt.shape[-1])[:, None]
        samples = lengths_of(prompt[:, 0], lengths)
        hop = self.sample_rate // MEL_RATE
        counts = -(-samples // hop)
        device = self._home(self.decoder)[0]
        if not prompt.shape[-1]:
            nothing = torch.zeros(len(prompt), self.config.dim, device=device, dtype=self._home(self.decoder)[1])
            return nothing, nothing[:, None][:, :0], counts.to(device)
        voice, frames = self.prompts(self.mel(prompt.to(device)), counts.to(device))
        return voice, frames, counts.to(device)

    def decoder_state(self, batch: int, prompt: Tensor | None = None, lengths: Tensor | None = None) -> State:
        """State of `batch` signals of which nothing has been decoded yet, as prompts [batch, 1, S] have it; `lengths`
        [batch] of these in samples."""
        state = super().decoder_state(batch)
        if prompt is None:
            return state
        if len(prompt) != batch:
            raise RequestError(f"{len(prompt)} prompts for {batch} rows: give one a row")
        return self.with_prompt(state, *self.heard(prompt, lengths))

    def with_prompt(self, state: State, voice: Tensor, frames: Tensor, prompted: Tensor) -> State:
        """A decoder's state with what `heard` gives."""
        part = self.decoder.parts[0]
        assert isinstance(part, Prompted)
        return State({**state, "0": part.told(state["0"], voice, frames, prompted)})

    @torch.no_grad()
    def decode(
        self, codes: Tensor, lengths: Tensor | None = None, prompt: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As any codec's, as prompts [B, 1, S] have it, of which `prompt_lengths` [B] samples are valid."""
        codes = self._checked(codes)
        return self._decoded(codes, lengths, self.decoder_state(len(codes), prompt, prompt_lengths))

    def beside(self, wave: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """What is given beside the codes, as `decode` takes it: the signal is its own prompt."""
        return {"prompt": wave} if lengths is None else {"prompt": wave, "prompt_lengths": lengths}

    def prompted(self, wave: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Quantized, Tensor]:
        """Waveforms [B, 1, S] through the codec beside prompts [B, 1, P], with gradients: waveforms, latents, what the
        quantizer said, and how alike both sides are: the mean size of the cosines between quantized frames, voice and
        the prompt's frames, each averaged over time."""
        latents = self.encode_latents(wave)
        quantized = self.quantize(latents)
        voice, frames, counts = self.heard(prompt)
        state = self.with_prompt(super().decoder_state(len(wave)), voice, frames, counts)
        made = self.decode_latents(quantized.latents, None, state)[..., : wave.shape[-1]]
        sides = [quantized.latents.mean(1), voice, frames.mean(1)]
        pairs = [(one, other) for number, one in enumerate(sides) for other in sides[:number]]
        alike = torch.stack([F.cosine_similarity(one, other).abs().mean() for one, other in pairs]).mean()
        return made, latents, quantized, alike


def build_prompted(options: Mapping[str, Any] | PromptedConfig) -> PromptedCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return PromptedCodec(options if isinstance(options, PromptedConfig) else PromptedConfig.of(options))


PUBLISHED_PROMPTED: dict[str, dict[str, Any]] = {
    # arXiv:2404.02702: HiFi-Codec's rate and groups; the prompts' sizes are not published with code, and ours.
    "promptcodec": {},
}
