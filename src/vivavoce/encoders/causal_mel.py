"""A causal encoder of log-mel frames: what a small full-duplex model hears with. No look-ahead, no downloads.

Continuous frames keep more of unknown voices than supervised tokens of the same size do (docs/log.md).
"""

import math

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.logmel import StreamingLogMel
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming, lengths_of

# Log-mel values of speech at usual levels lie between -18 and 2: this brings them to about unit variance.
MEL_MEAN, MEL_SCALE = -8.0, 4.0


class CausalMelEncoder(Streaming):
    """Waveform [B, samples, 1] -> frames [B, samples // hop, widths[-1]].

    A causal log-mel front end (10 ms), then one block per entry of `widths`: a strided convolution (stride 2) and
    `residuals` residual units (kernel 5, dilations 1, 2, …). hop = mel hop x 2 ** len(widths), 1280 samples = 80 ms at
    the default size. `complete`: the last frame of a whole signal is filled with silence, as a codec needs it: frames =
    ceil(samples / hop); else what is left after the last whole frame is dropped.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        mels: int = 40,
        fmax: float | None = 4000.0,
        stem: int = 96,
        widths: tuple[int, ...] = (128, 192, 256),
        residuals: int = 2,
        dropout: float = 0.0,
        complete: bool = False,
    ):
        super().__init__()
        if not widths:
            raise RequestError("a causal mel encoder needs at least one block: widths is empty")
        self.front = StreamingLogMel(sample_rate, sample_rate // 40, sample_rate // 100, mels, 0.0, fmax)
        parts: list[Streaming] = [Conv(mels, stem, 5), Pointwise(nn.Sequential(nn.LayerNorm(stem), nn.GELU()), stem)]
        inputs = stem
        for width in widths:
            parts.append(Conv(inputs, width, 4, stride=2))
            for i in range(residuals):
                inner = Chain(
                    Pointwise(nn.LayerNorm(width), width),
                    Conv(width, width, 5, dilation=2**i),
                    Pointwise(nn.Sequential(nn.GELU(), nn.Dropout(dropout)), width),
                    Conv(width, width, 1),
                )
                parts.append(Residual(inner))
            inputs = width
        parts.append(Pointwise(nn.LayerNorm(inputs), inputs))
        self.body = Chain(*parts)
        self.sample_rate, self.complete = sample_rate, complete
        self.frame_rate = sample_rate / float(self.hop)

    @property
    def hop(self):  # type: ignore[override]
        return self.front.hop * self.body.hop

    @property
    def chunk(self):  # type: ignore[override]
        return int(self.hop)

    @property
    def warmup(self):  # type: ignore[override]
        return self.front.inputs_for(self.body.warmup)

    @property
    def receptive_field(self):  # type: ignore[override]
        return math.ceil(self.front.receptive_field + self.front.hop * self.body.receptive_field)

    @property
    def width(self):
        return self.body.width

    def frames(self, length):
        hop = int(self.hop)
        return -(-length // hop) if self.complete else length // hop

    def initial_state(self, batch, device=None, dtype=None):
        """dtype: of the waveform; the frames of the body have that of its parameters."""
        state = self.body.initial_state(batch, device)
        device = state.emitted.device
        state["front"] = self.front.initial_state(batch, device, dtype)
        state["heard"] = torch.zeros_like(state["emitted"])
        return state

    def step(self, x, state, lengths=None):
        mel, front = self.front.step(x, state["front"], lengths)
        y, after = self.body.step(self.scaled(mel), state, front.emitted)
        after["front"] = front
        after["heard"] = state["heard"] + lengths_of(x, lengths)
        return y, after

    def flush(self, state, rows=None):
        """The last frame, filled with silence, where it is to be completed; else nothing."""
        if not self.complete:
            return self.nothing(state)
        missing = -state["heard"] % int(self.hop)
        if rows is not None:
            missing = missing * rows
        silence = state["front"]["recent"].new_zeros(missing.shape[0], int(missing.max()), 1)
        return self.step(silence, state, missing)

    def scaled(self, mel: Tensor) -> Tensor:
        """Log-mel values brought to about zero mean and unit variance, in the dtype of the body."""
        return ((mel - MEL_MEAN) / MEL_SCALE).to(self.body.parts[0].weight.dtype)  # type: ignore[arg-type]

    def from_power(self, power: Tensor) -> Tensor:
        """Frames [B, T // 8, width] of power spectra [B, T, bins] (lowest `bins` of the front end's spectrum)."""
        filters = self.front.filters[: power.shape[-1]]
        mel = (power @ filters).clamp(min=self.front.floor).log()
        return self.body(self.scaled(mel))
