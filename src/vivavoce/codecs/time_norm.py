"""SEANet's layers for codecs that normalise over time (EnCodec 48 kHz): they hear a whole chunk, and so cannot stream.

Source: EnCodec (arXiv:2210.13438, section 3.1; encodec/modules/conv.py, norm `time_group_norm`); FunCodec
(arXiv:2309.07405), over images.
"""

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.streaming import INFINITE, Chain, Streaming


class _Whole(Streaming):
    """What has no streaming form: it only maps whole signals [B, T, D], all rows of the same length."""

    lookahead = INFINITE
    receptive_field = INFINITE

    def initial_state(self, batch, device=None, dtype=None):
        raise RequestError("this codec normalises over time: it hears whole chunks and cannot be streamed")


class TimeNorm(_Whole):
    """A convolution, then a norm over all frames and channels of the signal with a gain and a bias for each channel (of
    an image's, for all its bins).

    left, right: output frames that are cut after the norm, which has heard them (a transposed convolution's overlap).
    """

    def __init__(self, inner: Conv | ConvTranspose, left: int = 0, right: int = 0):
        super().__init__()
        self.inner, self.left, self.right = inner, left, right
        self.norm = nn.GroupNorm(1, getattr(inner, "channels", inner.width))

    @property
    def hop(self) -> Fraction:  # type: ignore[override]
        return self.inner.hop

    @property
    def width(self) -> int:
        return self.inner.width

    def frames(self, length: Tensor) -> Tensor:
        return (self.inner.frames(length) - self.left - self.right) * (length > 0)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        y = self.inner(x).transpose(1, 2)
        image = y.float().unflatten(1, (self.norm.num_channels, -1))
        normed = F.group_norm(image, 1, self.norm.weight.float(), self.norm.bias.float(), self.norm.eps)
        return normed.flatten(1, 2)[..., self.left : y.shape[-1] - self.right].transpose(1, 2).to(y.dtype)


class WholeResidual(_Whole):
    """shortcut(x) + inner(x); `shortcut` None: x itself."""

    def __init__(self, inner: Chain, shortcut: Streaming | None = None):
        super().__init__()
        self.inner, self.shortcut = inner, shortcut

    @property
    def width(self) -> int:
        return self.inner.width

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x)) + self.inner(x)


class WholeChain(Chain):
    """Parts one after another, each over the whole of what the former gave."""

    lookahead = INFINITE  # type: ignore[assignment]
    receptive_field = INFINITE  # type: ignore[assignment]
    warmup = 1  # type: ignore[assignment]

    def initial_state(self, batch, device=None, dtype=None):
        return _Whole.initial_state(self, batch, device, dtype)  # type: ignore[arg-type]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class AtTheEnd(WholeSignal):
    """A `WholeChain` that hears frames [B, T, inputs] until their end, and then each row by itself."""

    def __init__(self, chain: WholeChain, inputs: int):
        super().__init__()
        self.chain, self.inputs = chain, inputs
        self.hop, self.chunk = chain.hop, chain.hop.numerator

    @property
    def width(self):
        return self.chain.width

    def frames(self, length):
        return self.chain.frames(torch.as_tensor(length))

    def inputs_for(self, outputs):
        return math.ceil(outputs * self.hop)

    def respond(self, x, lengths):
        answers: dict[int, Tensor] = {}
        for size in sorted(set(lengths.tolist()) - {0}):  # rows of one length together
            rows = (lengths == size).nonzero()[:, 0]
            answers.update(zip(rows.tolist(), self.chain(x[rows, :size])))
        nothing = x.new_zeros(0, self.width)
        return torch.nn.utils.rnn.pad_sequence([answers.get(row, nothing) for row in range(len(x))], batch_first=True)


def overlap_frames(samples: Tensor, chunk: int, stride: int, hop: int) -> Tensor:
    """Frames of codes of signals of `samples` (int64) in chunks of `chunk` that start every `stride` samples.

    Each chunk, shorter at the signal's end, has its own ceil(length / hop) frames.
    """
    full = ((samples - chunk).div(stride, rounding_mode="floor") + 1).clamp(min=0)
    count = full * math.ceil(chunk / hop)
    for place in range(math.ceil(chunk / stride)):
        rest = (samples - (full + place) * stride).clamp(min=0)
        count = count + (rest + hop - 1).div(hop, rounding_mode="floor")
    return count
