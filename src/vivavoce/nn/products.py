"""Products with frozen matrices on the CPU, laid out once as the library that multiplies likes them best.

oneDNN with a packed matrix is about a quarter faster than torch's own product on many frames (docs/benchmarks.md). What
is made of a weight is kept beside it, as long as it lives, and made anew when the weight has changed; where gradients
are recorded, nothing is. The copy takes as much memory again.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

# Not every build of torch has them.
PACKS = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
# A call of oneDNN costs 15 us more than one of torch, and finding what was kept as much again: so many multiplications
# are worth it. With fewer frames than FEW a product is bound by reading its matrix, in whatever order.
WORTH, FEW = 1 << 22, 16
SAMPLES = 64

_kept: Any = WeakTensorKeyDictionary()
_small: Any = WeakTensorKeyDictionary()  # weights that are to be rounded to 8 bits


def kept(weight: Tensor, make: Callable[[Tensor], Any]) -> Any:
    """`make(weight)`, kept from the last call where the weight is still the same; None for one that is learning."""
    if weight.requires_grad and torch.is_grad_enabled():
        return None
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or 0 in weight.stride():
        return None
    version = 0 if weight.is_inference() else weight._version
    # What writes to `.data` leaves no version behind: some values tell.
    size = weight.numel()
    step = max(1, size // SAMPLES)
    some = weight.detach().as_strided((size // step,), (step,), weight.storage_offset())
    state, before, made = _kept.get(weight, (None, some, None))
    if state != (version, weight.data_ptr()) or not torch.equal(some, before):
        made = make(weight.detach())
        _kept[weight] = (version, weight.data_ptr()), some.clone(), made
    return made


def round_to_int8(weight: Tensor) -> None:
    """From now on products with `weight`, if it is frozen, are of 8-bit values: its rows, and each frame that it meets,
    are rounded to steps of 1 / 127 of their largest value. Frames stay independent of one another."""
    _kept.pop(weight, None)
    _small[weight] = True


def packs(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of frames x [..., K] with `weight` is one of a matrix that is laid out for it."""
    frames = x.shape.numel() // max(1, x.shape[-1])
    return PACKS and frames >= FEW and frames * weight.numel() >= WORTH and _plain(x)


def _plain(x: Tensor) -> bool:
    """Frames in float32 on the CPU, without gradients, and no graph is being traced."""
    return (
        x.dtype == torch.float32 and x.device.type == "cpu"
        and not torch.is_grad_enabled() and not torch.jit.is_tracing()
    )  # fmt: skip


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False,
    matrix: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Tensor:  # fmt: skip
    """x [..., K] times the matrix [N, K] that `matrix` makes of `weight`, plus `bias` [N] -> [..., N], through GELU if
    asked."""
    if x.shape.numel() < FEW * x.shape[-1]:
        y = F.linear(x, matrix(weight), bias)
        return F.gelu(y) if gelu else y
    if weight in _small:
        if _plain(x) and (made := kept(weight, lambda found: _rounded(matrix(found)))) is not None:
            y = _of_integers(x, made[0], made[1], bias)
            return F.gelu(y) if gelu else y
    elif packs(x, weight) and (made := kept(weight, lambda found: _packed(matrix(found)))) is not None:
        after: tuple[str, list, str] = ("gelu", [], "none") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), made, bias, *after)
    y = F.linear(x, matrix(weight), bias)
    return F.gelu(y) if gelu else y


class PackedLinear(nn.Linear):
    """nn.Linear by `product`."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., K] -> [..., N]."""
        return product(input, self.weight, self.bias)


def _packed(matrix: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous())


def _rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [N, K] as int8 [K, N] and the step of each of its rows [N]."""
    steps = (matrix.abs().amax(1) / 127).clamp(min=1e-12)
    return (matrix / steps[:, None]).round().to(torch.int8).t(), steps


def _of_integers(x: Tensor, matrix: Tensor, steps: Tensor, bias: Tensor | None) -> Tensor:
    """Frames x [..., K], each rounded with a step of its own, times an int8 matrix [K, N] -> [..., N] float32."""
    frames = x.reshape(-1, x.shape[-1])
    own = frames.abs().amax(1, keepdim=True).div_(127).clamp_(min=1e-12)
    y = torch._int_mm((frames / own).round_().to(torch.int8), matrix).float().mul_(own).mul_(steps)
    y = y if bias is None else y.add_(bias)
    return y.view(*x.shape[:-1], -1)
