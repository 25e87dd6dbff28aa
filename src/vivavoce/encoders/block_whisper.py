"""Whisper's encoder as a stream: causal convolutions, attention in blocks, then the mean of some frames.

Source: GLM-4-Voice's tokenizer (arXiv:2412.02612, section 2.1; arXiv:2411.17607), over the lower half of
Whisper-large-v3: a frame sees its own block and those before it. Two things are made fit for streams here: quiet mel
values are raised to a fixed level, not to 8 decades below the loudest of half a minute, and positions go on, where the
published one begins anew every 30 s (as far back as a frame sees by default).
"""

import torch
from torch import Tensor, nn

from vivavoce.audio.mel import mel_filters
from vivavoce.audio.whisper import HOP, RATE, WINDOW
from vivavoce.encoders.whisper import sinusoids
from vivavoce.nn.chunks import ChunkLayer, WholeChunks
from vivavoce.nn.convolution import Conv
from vivavoce.nn.stacking import Stack
from vivavoce.nn.streaming import Chain, Pointwise, State, Streaming, lengths_of

QUIET = -6.5  # log10 of mel power: what speech of usual loudness has 8 decades below its loudest


class StreamingWhisperMel(Conv):
    """Waveform [B, S, 1] at 16 kHz -> [B, S // 160, mels]: Whisper's log-mel frames, of S a multiple of 160 exactly
    those, but for their floor."""

    taper: Tensor
    filters: Tensor

    def __init__(self, mels: int):
        half = WINDOW // 2
        super().__init__(1, mels, WINDOW, HOP, bias=False, left=half, right=half - HOP, pad_mode="reflect",
                         complete=False)  # fmt: skip
        self.register_parameter("weight", None)  # only the convolution's bookkeeping is used
        self.register_buffer("taper", torch.hann_window(WINDOW), persistent=False)
        filters = mel_filters(RATE, WINDOW, mels, 0.0, 8000.0, scale="slaney", area=True)
        self.register_buffer("filters", torch.from_numpy(filters).T.contiguous(), persistent=False)

    def convolve(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x[..., 0].float().unfold(1, self.span, self.stride) * self.taper.float())
        power = spectrum.real.square() + spectrum.imag.square()
        decades = (power @ self.filters.float()).clamp(min=10**QUIET).log10()
        return ((decades + 4.0) / 4.0).to(x.dtype)


class Places(Streaming):
    """Frames [B, T, D] with Whisper's sinusoids of their places added, however far the signal goes."""

    def __init__(self, width: int):
        super().__init__()
        self._width = width

    @property
    def width(self):
        return self._width

    def initial_state(self, batch, device=None, dtype=None):
        zero = torch.zeros(batch, dtype=torch.int64, device=self.home(device, dtype)["device"])
        return State(heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        count, heard = lengths_of(x, lengths), state["heard"]
        most = x.shape[1] + (int(heard.max()) if len(x) else 0)
        table = sinusoids(max(most, 1), self.width).to(x)
        at = heard[:, None] + torch.arange(x.shape[1], device=x.device)
        return x + table[at], State(heard=heard + count, emitted=count)


class Mean(nn.Module):
    """Frames [B, T, count x D] of `count` side by side -> their mean [B, T, D]."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.count, -1)).mean(-2)


def pooled(width: int, count: int) -> list[Streaming]:
    """Frames [B, T, width] -> means of `count` each; the last one's missing frames are zeros."""
    return [] if count == 1 else [Stack(width, count, complete=True), Pointwise(Mean(count), width)]


class BlockWhisper(Chain):
    """Waveform [B, S, 1] at 16 kHz -> frames [B, T, width], 50 / pool a second.

    block: frames of the attention's blocks at 50 a second (published: 200); left: blocks before its own that a frame
    sees (None: all, and memory grows). pool: frames whose mean is one of the output.
    """

    def __init__(
        self,
        mels: int = 128,
        width: int = 1280,
        layers: int = 16,
        heads: int = 20,
        hidden: int = 5120,
        block: int = 200,
        left: int | None = 7,
        pool: int = 4,
    ):
        super().__init__(
            StreamingWhisperMel(mels),
            Conv(mels, width, 3),
            Pointwise(nn.GELU(), width),
            Conv(width, width, 3, stride=2, left=2, complete=False),
            Pointwise(nn.GELU(), width),
            Places(width),
            WholeChunks(width, block),
            *(ChunkLayer(width, heads, hidden, block, left, key_bias=False) for _ in range(layers)),
            *pooled(width, pool),
        )
