"""nn.Linear with the memory layout that its few rows of frames are read fastest from."""

from torch import nn


def linear(inputs: int, width: int, bias: bool = True) -> nn.Linear:
    """nn.Linear whose weight [width, inputs], where it is wider than its input, lies in memory as [inputs, width].

    One or two frames at a time, as in streaming, make a product as dear as reading its matrix. Reading runs along the
    longer side at up to twice the speed (docs/benchmarks.md); with many frames both layouts cost the same.
    """
    layer = nn.Linear(inputs, width, bias=bias)
    if width > inputs:
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return layer

