"""ConvNeXt blocks over time, of both versions: depthwise convolution, norm, widening, activation, narrowing.

Sources: Vocos (arXiv:2306.00814) for the first version; ConvNeXt V2 (Woo et al., arXiv:2301.00808, section 3.2) for the
response norm, and APCodec (arXiv:2402.10533) and MDCTCodec (arXiv:2411.00464) for its use over time.
"""

import torch
from torch import Tensor, nn

from vivavoce.nn.convolution import Conv
from vivavoce.nn.gathered import WholeSignal, residual
from vivavoce.nn.norms import LayerScale
from vivavoce.nn.products import PackedLinear
from vivavoce.nn.streaming import Chain, Pointwise, State, Streaming, lengths_of, slice_rows, valid, zero_padding

EPSILON = 1e-6


class ResponseNorm(WholeSignal):
    """Channels compete: y = x + bias + gain * x * (norm of the channel over time / mean of these norms).

    The norm is over the whole signal (GRN as published), or, causal, the root of the mean square of the frames heard
    so far: then it streams. Gain and bias begin at 0: the identity.
    """

    def __init__(self, width: int, causal: bool = False):
        super().__init__()
        self.inputs = self._width = width
        self.causal = causal
        self.gain, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    @property
    def width(self):
        return self._width

    @property
    def lookahead(self):  # type: ignore[override]
        return 0 if self.causal else super().lookahead

    def initial_state(self, batch, device=None, dtype=None):
        """Causal: `energy` [B, 1, D] of all frames heard, `heard` [B] of them."""
        if not self.causal:
            return super().initial_state(batch, device, dtype)
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(energy=torch.zeros(batch, 1, self._width, **home), heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        if not self.causal:
            return super().step(x, state, lengths)
        count = lengths_of(x, lengths)
        energy = torch.cat([state["energy"], zero_padding(x, count).square()], dim=1).cumsum(1)
        heard = state["heard"][:, None] + torch.arange(1, x.shape[1] + 1, device=x.device)
        # The number of frames divides out of the ratio below, but keeps long signals in range of the epsilon.
        y = self._normed(x, energy[:, 1:] / heard[..., None])
        return y, State(energy=slice_rows(energy, count, 1), heard=state["heard"] + count, emitted=count)

    def flush(self, state, rows=None):
        return self.nothing(state) if self.causal else super().flush(state, rows)

    def respond(self, x, lengths):
        inside = valid(lengths, x.shape[1])[..., None]
        return self._normed(x, torch.where(inside, x, 0).square().sum(1, keepdim=True))

    def _normed(self, x: Tensor, energy: Tensor) -> Tensor:
        norms = (energy + 1e-12).sqrt()  # the root of 0 has no gradient
        return x + self.gain * (x * norms / (norms.mean(-1, keepdim=True) + EPSILON)) + self.bias


def convnext_block(
    width: int,
    hidden: int,
    kernel: int = 7,
    ahead: int = 3,
    scale: float | None = None,
    response: bool = False,
    dilation: int = 1,
) -> Streaming:
    """x + narrow(act(widen(norm(depthwise(x))))), frames [B, T, D] -> [B, T, D].

    ahead: taps of the convolution's kernel, `dilation` frames apart, that lie in the future; 0: causal. scale: first
    value of the branch's factors (version 1; None: none). response: a response norm behind the activation (version 2),
    over the whole signal unless causal.
    """
    left, right = dilation * (kernel - 1 - ahead), dilation * ahead
    depthwise = Conv(width, width, kernel, 1, dilation, width, left=left, right=right, complete=False)
    widen = nn.Sequential(nn.LayerNorm(width, EPSILON), PackedLinear(width, hidden), nn.GELU())
    narrow: list[nn.Module] = [PackedLinear(hidden, width)]
    if scale is not None:
        narrow.append(LayerScale(width, scale))
    between: list[Streaming] = [ResponseNorm(hidden, causal=ahead == 0)] if response else []
    inner = Chain(depthwise, Pointwise(widen, hidden), *between, Pointwise(nn.Sequential(*narrow), width))
    return residual(inner)


def convnext_stack(
    inputs: int, width: int, hidden: int, layers: int, outputs: int | None = None, causal: bool = False, kernel: int = 7
) -> list[Streaming]:
    """Vocos' body: a convolution in, a norm, `layers` blocks of version 1, a norm, and a linear map to `outputs`."""
    ahead = 0 if causal else kernel // 2
    parts: list[Streaming] = [
        Conv(inputs, width, kernel, left=kernel - 1 - ahead, right=ahead, complete=False),
        Pointwise(nn.LayerNorm(width, EPSILON), width),
        *(convnext_block(width, hidden, kernel, ahead, scale=1 / layers) for _ in range(layers)),
    ]
    last: list[nn.Module] = [nn.LayerNorm(width, EPSILON)]
    if outputs is not None:
        last.append(PackedLinear(width, outputs))
    return [*parts, Pointwise(nn.Sequential(*last), outputs or width)]
